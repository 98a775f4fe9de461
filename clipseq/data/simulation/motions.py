"""Actions of a simulated person, each a parametric motion from one posture to another.

To add an action, write its motion below, add it to `ACTIONS`, and its phrases to `captions`.
"""

from collections.abc import Callable

import attrs
import numpy as np
from jaxtyping import Float

from clipseq.data.simulation.body import COLUMN, pose

Trace = tuple[Float[np.ndarray, "F A"], Float[np.ndarray, " F"], Float[np.ndarray, " F"]]
"""Poses, forward speed in m/s, and heading in rad relative to the start."""


@attrs.frozen(eq=False)
class Start:
    """The state in which an action starts.

    Attributes:
        pose: first pose.
        heading: direction that the person faces, in rad from the x axis to the left.
        bearing: direction of the person as seen from the radar, in the same terms.
    """

    pose: Float[np.ndarray, " A"]
    heading: float
    bearing: float


def _smooth(x):
    """Return 0 up to x = 0 and 1 from x = 1, with a minimum-jerk curve in between."""
    x = np.clip(x, 0.0, 1.0)
    return x**3 * (10 - 15 * x + 6 * x**2)


def _rise_and_fall(t, duration, rise):
    """Go from 0 to 1 within `rise` seconds, and fall back to 0 in the last `rise` seconds."""
    return _smooth(t / rise) * _smooth((duration - t) / rise)


def _repeat(t, duration, period):
    """Go from 0 to 1 and back a whole number of times, about every `period` seconds."""
    count = max(1, round(duration / period))
    return 0.5 - 0.5 * np.cos(2 * np.pi * count * t / duration)


def _keep_still(t, start: Start) -> Trace:
    return np.repeat(start.pose[None], len(t), axis=0), np.zeros(len(t)), np.zeros(len(t))


def _add(poses, **angles) -> None:
    for name, values in angles.items():
        poses[:, COLUMN[name]] += values


def _sides(rng) -> tuple[str, str]:
    return ("left", "right") if rng.random() < 0.5 else ("right", "left")


def _add_gait(poses, phase, envelope, hip, knee, arm, elbow) -> None:
    """Add alternating legs and counter-swinging arms at `phase` (radians, one stride is 2 pi)."""
    for side, shift in (("left", 0.0), ("right", np.pi)):
        p = phase + shift
        swing = np.maximum(0.0, -np.sin(p + 0.25)) ** 2  # the knee bends as the leg comes forward
        _add(
            poses,
            **{
                f"{side}_hip": envelope * (hip * np.cos(p) + 0.2 * knee * swing),
                f"{side}_knee": envelope * (0.1 + knee * swing),
                f"{side}_arm": -envelope * arm * np.cos(p),
                f"{side}_elbow": envelope * elbow,
            },
        )


@attrs.frozen
class _Gait:
    """A way to walk or run.

    Attributes:
        speeds: slowest and fastest speed in m/s.
        stride: length of a stride in m.
        hip: swing of the hip in rad.
        knee: bend of the knee in rad.
        arm: swing of the arm in rad.
        elbow: bend of the elbow in rad.
        lean: forward lean of the trunk in rad.
        bounce: height of the bounce in m.
    """

    speeds: tuple[float, float]
    stride: float
    hip: float
    knee: float
    arm: float
    elbow: float
    lean: float
    bounce: float


_WALK = _Gait(
    (0.7, 1.5), stride=1.45, hip=0.42, knee=1.0, arm=0.35, elbow=0.25, lean=0.04, bounce=0
)
_RUN = _Gait((1.9, 3.0), stride=2.0, hip=0.65, knee=1.5, arm=0.7, elbow=1.4, lean=0.18, bounce=0.06)


def _travel(way: float, gait: _Gait) -> Callable[..., Trace]:
    """Return a gait at an angle `way` from the direction away from the radar."""

    def move(t, duration, start: Start, rng) -> Trace:
        poses = np.repeat(start.pose[None], len(t), axis=0)
        pace = rng.uniform(*gait.speeds)
        target = start.bearing + way + rng.uniform(-0.2, 0.2)
        turn = (target - start.heading + np.pi) % (2 * np.pi) - np.pi
        turning = 0.3 + 0.25 * abs(turn)
        envelope = _smooth((t - 0.5 * turning) / 0.5) * _smooth((duration - t) / 0.45)
        stepping = np.maximum(envelope, 0.35 * _rise_and_fall(t, duration, 0.25))
        cadence = pace / (gait.stride * (0.75 + 0.25 * pace / gait.speeds[1]))
        phase = 2 * np.pi * cadence * t + np.pi / 2
        size = rng.uniform(0.85, 1.15)
        _add_gait(
            poses, phase, stepping, size * gait.hip, size * gait.knee, size * gait.arm, gait.elbow
        )
        _add(
            poses,
            lean=envelope * gait.lean,
            lift=envelope * gait.bounce * np.maximum(0.0, np.cos(2 * phase)) ** 2,
            planted=-_rise_and_fall(t, duration, 0.3),
        )
        return poses, pace * envelope, turn * _smooth(t / turning)

    return move


def draw_standing(rng) -> Float[np.ndarray, " A"]:
    angles = {}
    for side in ("left", "right"):
        angles[f"{side}_spread"] = rng.uniform(0.03, 0.1)
        angles[f"{side}_arm"] = rng.uniform(-0.05, 0.15)
        angles[f"{side}_raise"] = rng.uniform(0.06, 0.2)
        angles[f"{side}_elbow"] = rng.uniform(0.1, 0.35)
        angles[f"{side}_knee"] = 0.03
    return pose(lean=rng.uniform(-0.02, 0.06), **angles)


def draw_sitting(rng) -> Float[np.ndarray, " A"]:
    angles = {}
    thigh, knee = rng.uniform(1.4, 1.6), rng.uniform(1.35, 1.7)
    for side in ("left", "right"):
        angles[f"{side}_hip"], angles[f"{side}_knee"] = thigh, knee
        angles[f"{side}_spread"] = rng.uniform(0.05, 0.2)
        angles[f"{side}_arm"] = rng.uniform(0.3, 0.5)
        angles[f"{side}_raise"] = rng.uniform(0.05, 0.15)
        angles[f"{side}_elbow"] = rng.uniform(0.7, 1.0)
    return pose(lean=rng.uniform(-0.1, 0.15), **angles)


def draw_lying(rng) -> Float[np.ndarray, " A"]:
    angles = {}
    for side in ("left", "right"):
        angles[f"{side}_hip"] = rng.uniform(0.0, 0.3)
        angles[f"{side}_knee"] = rng.uniform(0.0, 0.5)
        angles[f"{side}_spread"] = rng.uniform(0.05, 0.3)
        angles[f"{side}_raise"] = rng.uniform(0.2, 1.0)
        angles[f"{side}_elbow"] = rng.uniform(0.1, 0.8)
    over, sign = (("pitch", "roll")[rng.integers(2)], rng.choice([-1.0, 1.0]))
    angles[over] = sign * rng.uniform(1.4, 1.6)
    return pose(**angles)


def _sit_down(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    poses += _smooth(t / duration)[:, None] * (draw_sitting(rng) - start.pose)
    _add(poses, lean=rng.uniform(0.4, 0.7) * np.sin(np.pi * _smooth(t / duration)))
    return poses, speed, turn


def _stand_up(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    rise = _smooth((t / duration - 0.15) / 0.85)
    poses += rise[:, None] * (draw_standing(rng) - start.pose)
    # The trunk comes forward before the hips leave the chair.
    _add(poses, lean=rng.uniform(0.5, 0.8) * np.sin(np.pi * _smooth(t / duration) ** 0.8))
    return poses, speed, turn


def _fall(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    drop = rng.uniform(0.8, 1.2)
    x = np.clip((t - 0.2) / drop, 0, 1)
    # An inverted pendulum gains speed until the floor stops it almost at once.
    down = np.where(x < 0.9, 0.9 * (x / 0.9) ** 2.5, 1 - 0.1 * ((1 - x) / 0.1) ** 2)
    poses += down[:, None] * (draw_lying(rng) - start.pose)
    buckle = np.sin(np.pi * np.clip(x, 0, 1)) * rng.uniform(0.3, 0.9)
    flail = np.sin(np.pi * np.clip(x * 1.1, 0, 1)) * rng.uniform(0.5, 1.5)
    for side in ("left", "right"):
        _add(poses, **{f"{side}_knee": buckle, f"{side}_hip": 0.6 * buckle, f"{side}_raise": flail})
    return poses, speed, turn


def _get_up(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    poses += _smooth(t / duration)[:, None] * (draw_standing(rng) - start.pose)
    crouch = np.sin(np.pi * _smooth(t / duration * 1.05)) ** 2
    for side in ("left", "right"):
        _add(
            poses,
            **{
                f"{side}_hip": crouch * rng.uniform(1.2, 1.6),
                f"{side}_knee": crouch * rng.uniform(1.5, 2.0),
                f"{side}_arm": crouch * rng.uniform(0.5, 1.2),
            },
        )
    _add(poses, lean=0.5 * crouch)
    return poses, speed, turn


def _turn_around(t, duration, start, rng) -> Trace:
    poses, speed, _ = _keep_still(t, start)
    envelope = _rise_and_fall(t, duration, 0.25)
    phase = 2 * np.pi * rng.uniform(0.9, 1.3) * t
    _add_gait(poses, phase, envelope, 0.08, 0.6, 0.1, 0.1)
    way = rng.choice([-1.0, 1.0])
    _add(poses, twist=0.35 * way * np.sin(np.pi * np.clip(1.3 * t / duration, 0, 1)))
    return poses, speed, way * np.pi * rng.uniform(0.85, 1.1) * _smooth(t / duration)


def _squat(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    down = _repeat(t, duration, rng.uniform(1.4, 2.4)) * rng.uniform(0.75, 1.0)
    for side in ("left", "right"):
        _add(
            poses,
            **{
                f"{side}_hip": 1.8 * down,
                f"{side}_knee": 2.1 * down,
                f"{side}_spread": 0.15 * down,
                f"{side}_arm": 1.2 * down,
            },
        )
    _add(poses, lean=0.45 * down)
    return poses, speed, turn


def _lunge(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    down = _repeat(t, duration, rng.uniform(1.6, 2.6)) * rng.uniform(0.8, 1.0)
    front, back = _sides(rng)
    _add(
        poses,
        **{
            f"{front}_hip": 1.25 * down,
            f"{front}_knee": 1.25 * down,
            f"{back}_hip": -0.45 * down,
            f"{back}_knee": 0.75 * down,
            f"{back}_arm": 0.4 * down,
        },
        lean=0.1 * down,
    )
    return poses, speed, turn


def _wave(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    up = _rise_and_fall(t, duration, rng.uniform(0.4, 0.6))
    side, _ = _sides(rng)
    beat = np.sin(2 * np.pi * rng.uniform(1.3, 2.4) * t + rng.uniform(0, 6.28))
    _add(
        poses,
        **{
            f"{side}_arm": up * (rng.uniform(0.9, 1.4) + 0.12 * beat),
            f"{side}_raise": up * rng.uniform(0.3, 0.9),
            f"{side}_elbow": up * (rng.uniform(1.1, 1.6) + rng.uniform(0.3, 0.5) * beat),
            f"{side}_swing": up * (-0.3 + rng.uniform(0.35, 0.6) * beat),
        },
    )
    return poses, speed, turn


def _box(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    up = _rise_and_fall(t, duration, 0.4)
    rate = rng.uniform(0.7, 1.2)  # punches of one arm per second
    twist = np.zeros(len(t))
    for side, shift, sign in (("left", 0.0, 1.0), ("right", 0.5, -1.0)):
        beat = (rate * t + shift) % 1.0
        # The arm goes out fast and comes back more slowly.
        out = np.where(beat < 0.25, _smooth(beat / 0.25), _smooth((0.7 - beat) / 0.45))
        twist -= sign * 0.35 * out
        _add(
            poses,
            **{
                f"{side}_arm": up * (0.45 + 1.05 * out),
                f"{side}_elbow": up * (2.0 - 1.9 * out),
                f"{side}_raise": up * 0.1,
            },
        )
    knees = 0.2 * up
    _add(poses, twist=up * twist, lean=0.1 * up, left_knee=knees, right_knee=knees)
    _add(poses, left_hip=0.6 * knees, right_hip=0.6 * knees)
    return poses, speed, turn


def _stretch(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    up = _repeat(t, duration, rng.uniform(2.2, 3.6)) ** 0.8 * rng.uniform(0.9, 1.0)
    forward = rng.random() < 0.6
    for side in ("left", "right"):
        _add(poses, **{f"{side}_{'arm' if forward else 'raise'}": 2.8 * up})
    _add(poses, lean=-0.1 * up)
    return poses, speed, turn


def _bend(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    down = _rise_and_fall(t, duration, duration * rng.uniform(0.35, 0.5)) * rng.uniform(1.1, 1.5)
    for side in ("left", "right"):
        _add(
            poses,
            **{f"{side}_arm": 0.9 * down, f"{side}_hip": 0.12 * down, f"{side}_knee": 0.15 * down},
        )
    _add(poses, lean=down)
    return poses, speed, turn


def _hops(t, duration, rng):
    """Return (crouch, lift in m, flight 0..1) of hops; a flight of T seconds rises g T^2 / 8."""
    count = max(1, round(duration / rng.uniform(0.75, 1.1)))
    period = duration / count
    beat = (t / period) % 1.0
    flight = np.clip((beat - 0.4) / 0.4, 0, 1)
    push, landing = (np.abs((beat - at + 0.5) % 1.0 - 0.5) for at in (0.22, 0.92))
    crouch = np.exp(-((push / 0.14) ** 2)) + 0.7 * np.exp(-((landing / 0.11) ** 2))
    lift = 9.81 * (0.4 * period) ** 2 / 8 * 4 * flight * (1 - flight)
    return crouch, np.minimum(lift, 0.45), flight


def _jump(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    crouch, lift, flight = _hops(t, duration, rng)
    crouch = crouch * _rise_and_fall(t, duration, 0.2) * rng.uniform(0.6, 1.0)
    reach = rng.uniform(0.3, 1.5) * np.sin(np.pi * flight)
    for side in ("left", "right"):
        _add(
            poses,
            **{
                f"{side}_hip": 0.8 * crouch,
                f"{side}_knee": 1.2 * crouch,
                f"{side}_arm": reach - 0.5 * crouch,
            },
        )
    _add(poses, lean=0.35 * crouch, lift=lift)
    return poses, speed, turn


def _jumping_jacks(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    count = max(1, round(duration * rng.uniform(0.9, 1.3)))
    opened = 0.5 - 0.5 * np.cos(2 * np.pi * count * t / duration)
    hop = 0.08 * np.sin(2 * np.pi * count * t / duration) ** 2
    arms, legs = rng.uniform(2.0, 2.6), rng.uniform(0.25, 0.4)
    for side in ("left", "right"):
        _add(poses, **{f"{side}_raise": arms * opened, f"{side}_spread": legs * opened})
    _add(poses, lift=hop)
    return poses, speed, turn


def _kick(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    count = max(1, round(duration / rng.uniform(1.3, 2.0)))
    beat = (count * t / duration) % 1.0
    leg, _ = _sides(rng)
    back = np.exp(-(((beat - 0.27) / 0.12) ** 2))
    out = np.exp(-(((beat - 0.55) / 0.15) ** 2))
    size = _rise_and_fall(t, duration, 0.2) * rng.uniform(0.8, 1.15)
    # If planted, both ankles would anchor the body, and the pelvis would follow the kicking foot.
    _add(
        poses,
        **{f"{leg}_hip": size * (1.35 * out - 0.3 * back), f"{leg}_knee": size * 1.1 * back},
        lean=-0.2 * size * out,
        planted=-_rise_and_fall(t, duration, 0.2),
    )
    return poses, speed, turn


def _march(t, duration, start, rng) -> Trace:
    poses, speed, turn = _keep_still(t, start)
    envelope = _rise_and_fall(t, duration, 0.3)
    phase = 2 * np.pi * rng.uniform(0.8, 1.2) * t
    size = rng.uniform(0.8, 1.2)
    for side, shift in (("left", 0.0), ("right", np.pi)):
        knee = envelope * np.maximum(0.0, np.sin(phase + shift)) ** 1.5
        _add(
            poses,
            **{
                f"{side}_hip": 1.2 * size * knee,
                f"{side}_knee": 1.4 * size * knee,
                f"{side}_arm": -0.4 * envelope * np.sin(phase + shift),
                f"{side}_elbow": 0.6 * envelope,
            },
        )
    _add(poses, planted=-envelope)
    return poses, speed, turn


def _stand_still(t, duration, start, rng) -> Trace:
    return _keep_still(t, start)


@attrs.frozen
class Action:
    """An action of the simulated person.

    Attributes:
        move: motion, called as move(t, duration, start, rng) for a `Start`.
        seconds: shortest and longest duration.
        starts: postures in which it can start.
        ends: posture in which it ends; None: the one in which it started.
        weight: how often it is drawn, relative to the others.
    """

    move: Callable[..., Trace]
    seconds: tuple[float, float]
    starts: tuple[str, ...] = ("standing",)
    ends: str | None = None
    weight: float = 1.0


ACTIONS: dict[str, Action] = {
    "walk_towards": Action(_travel(np.pi, _WALK), (2.0, 5.5), weight=2.0),
    "walk_away": Action(_travel(0.0, _WALK), (2.0, 5.5), weight=2.0),
    "walk_left": Action(_travel(np.pi / 2, _WALK), (2.0, 5.0), weight=2.0),
    "walk_right": Action(_travel(-np.pi / 2, _WALK), (2.0, 5.0), weight=2.0),
    "run_towards": Action(_travel(np.pi, _RUN), (1.8, 3.0), weight=2.0),
    "run_away": Action(_travel(0.0, _RUN), (1.8, 3.0), weight=2.0),
    "sit_down": Action(_sit_down, (1.4, 3.0), ends="sitting", weight=1.5),
    "stand_up": Action(_stand_up, (1.3, 2.8), starts=("sitting",), ends="standing"),
    "squat": Action(_squat, (2.2, 5.5)),
    "lunge": Action(_lunge, (2.2, 5.5)),
    "wave": Action(_wave, (1.8, 5.5), starts=("standing", "sitting")),
    "box": Action(_box, (1.8, 5.5)),
    "stretch": Action(_stretch, (2.2, 5.0), starts=("standing", "sitting")),
    "turn_around": Action(_turn_around, (1.5, 3.2)),
    "bend": Action(_bend, (1.8, 4.0)),
    "jump": Action(_jump, (1.8, 5.0)),
    "jumping_jacks": Action(_jumping_jacks, (2.2, 5.5)),
    "kick": Action(_kick, (1.8, 5.0)),
    "march": Action(_march, (2.2, 5.5)),
    "stand_still": Action(_stand_still, (2.4, 5.0)),
    "fall": Action(_fall, (1.7, 3.5), ends="lying", weight=1.2),
    "get_up": Action(_get_up, (2.0, 4.0), starts=("lying",), ends="standing"),
}
"""Actions of the simulated person. Left and right are as seen by the radar."""

POSTURES = {"standing": draw_standing, "sitting": draw_sitting, "lying": draw_lying}
"""Functions that draw a pose of each posture."""
