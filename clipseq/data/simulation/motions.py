"""Parametric motions of a person: actions in order, from posture to posture, in the radar's room.

The room is that of `radar_simulator`: the radar stands over the origin and looks along +x, y
points to its left. An action starts in a posture and ends in one (nobody stands up who does not
sit), so that a sequence of actions is one continuous movement.
"""

from collections.abc import Callable, Sequence

import attrs
import numpy as np
from jaxtyping import Float

from clipseq.data.simulation.body import COLUMN, Person, body_points, pose
from clipseq.data.simulation.captions import PHRASES

RATE = 50.0
"""Samples of a motion per second; nothing here moves faster than about 5 Hz."""

NEAREST_M, FARTHEST_M, WIDEST = 1.2, 7.8, 0.5
"""Where a person may stand: distances, and the greatest |sin(bearing)|."""
_CLOSEST_POINT_M, _FARTHEST_POINT_M = 0.7, 9.2

_STILL_AT_MOST_S = 1.4  # pauses of a sequence together; "stands still" lasts longer than that
_TRIES_PER_NUMBER, _TRIES_PER_SEQUENCE = 60, 12

Trace = tuple[Float[np.ndarray, "F A"], Float[np.ndarray, " F"], Float[np.ndarray, " F"]]
"""Poses, forward speed in m/s, and heading in rad relative to the start."""


@attrs.frozen(eq=False)
class _Start:
    """What an action starts from: its pose, and by how much to turn to face each way."""

    pose: Float[np.ndarray, " A"]
    heading: float
    bearing: float


def _smooth(x):
    """0 up to x = 0, 1 from x = 1, minimum-jerk between."""
    x = np.clip(x, 0.0, 1.0)
    return x**3 * (10 - 15 * x + 6 * x**2)


def _held(t, duration, rise):
    """Rises from 0 to 1 within `rise` seconds, falls back to 0 in the last `rise` seconds."""
    return _smooth(t / rise) * _smooth((duration - t) / rise)


def _repeated(t, duration, period):
    """Goes 0, 1, 0 a whole number of times in `duration`, each in about `period` seconds."""
    count = max(1, round(duration / period))
    return 0.5 - 0.5 * np.cos(2 * np.pi * count * t / duration)


def _still(t, start: _Start) -> Trace:
    return np.repeat(start.pose[None], len(t), axis=0), np.zeros(len(t)), np.zeros(len(t))


def _add(poses, **angles) -> None:
    for name, values in angles.items():
        poses[:, COLUMN[name]] += values


def _sides(rng) -> tuple[str, str]:
    return ("left", "right") if rng.random() < 0.5 else ("right", "left")


def _gait(poses, phase, envelope, hip, knee, arm, elbow) -> None:
    """Alternating legs and counter-swinging arms at `phase` (radians, one stride is 2 pi)."""
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
    """Speeds in m/s, stride in m, swing of hip, knee and arm and bend of elbow and trunk in rad,
    and height of the bounce in m."""

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
    """Walking or running; `way` is the direction against that away from the radar."""

    def move(t, duration, start: _Start, rng) -> Trace:
        poses = np.repeat(start.pose[None], len(t), axis=0)
        pace = rng.uniform(*gait.speeds)
        target = start.bearing + way + rng.uniform(-0.2, 0.2)
        turn = (target - start.heading + np.pi) % (2 * np.pi) - np.pi
        turning = 0.3 + 0.25 * abs(turn)
        envelope = _smooth((t - 0.5 * turning) / 0.5) * _smooth((duration - t) / 0.45)
        stepping = np.maximum(envelope, 0.35 * _held(t, duration, 0.25))
        cadence = pace / (gait.stride * (0.75 + 0.25 * pace / gait.speeds[1]))
        phase = 2 * np.pi * cadence * t + np.pi / 2
        size = rng.uniform(0.85, 1.15)
        _gait(
            poses, phase, stepping, size * gait.hip, size * gait.knee, size * gait.arm, gait.elbow
        )
        _add(
            poses,
            lean=envelope * gait.lean,
            lift=envelope * gait.bounce * np.maximum(0.0, np.cos(2 * phase)) ** 2,
            planted=-_held(t, duration, 0.3),
        )
        return poses, pace * envelope, turn * _smooth(t / turning)

    return move


def _standing(rng) -> Float[np.ndarray, " A"]:
    angles = {}
    for side in ("left", "right"):
        angles[f"{side}_spread"] = rng.uniform(0.03, 0.1)
        angles[f"{side}_arm"] = rng.uniform(-0.05, 0.15)
        angles[f"{side}_raise"] = rng.uniform(0.06, 0.2)
        angles[f"{side}_elbow"] = rng.uniform(0.1, 0.35)
        angles[f"{side}_knee"] = 0.03
    return pose(lean=rng.uniform(-0.02, 0.06), **angles)


def _sitting(rng) -> Float[np.ndarray, " A"]:
    angles = {}
    thigh, knee = rng.uniform(1.4, 1.6), rng.uniform(1.35, 1.7)
    for side in ("left", "right"):
        angles[f"{side}_hip"], angles[f"{side}_knee"] = thigh, knee
        angles[f"{side}_spread"] = rng.uniform(0.05, 0.2)
        angles[f"{side}_arm"] = rng.uniform(0.3, 0.5)
        angles[f"{side}_raise"] = rng.uniform(0.05, 0.15)
        angles[f"{side}_elbow"] = rng.uniform(0.7, 1.0)
    return pose(lean=rng.uniform(-0.1, 0.15), **angles)


def _lying(rng) -> Float[np.ndarray, " A"]:
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
    poses, speed, turn = _still(t, start)
    poses += _smooth(t / duration)[:, None] * (_sitting(rng) - start.pose)
    _add(poses, lean=rng.uniform(0.4, 0.7) * np.sin(np.pi * _smooth(t / duration)))
    return poses, speed, turn


def _stand_up(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    rise = _smooth((t / duration - 0.15) / 0.85)
    poses += rise[:, None] * (_standing(rng) - start.pose)
    # the trunk comes forward before the hips leave the chair
    _add(poses, lean=rng.uniform(0.5, 0.8) * np.sin(np.pi * _smooth(t / duration) ** 0.8))
    return poses, speed, turn


def _fall(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    drop = rng.uniform(0.8, 1.2)
    x = np.clip((t - 0.2) / drop, 0, 1)
    # an inverted pendulum gains speed until the floor stops it, all but dead
    down = np.where(x < 0.9, 0.9 * (x / 0.9) ** 2.5, 1 - 0.1 * ((1 - x) / 0.1) ** 2)
    poses += down[:, None] * (_lying(rng) - start.pose)
    buckle = np.sin(np.pi * np.clip(x, 0, 1)) * rng.uniform(0.3, 0.9)
    flail = np.sin(np.pi * np.clip(x * 1.1, 0, 1)) * rng.uniform(0.5, 1.5)
    for side in ("left", "right"):
        _add(poses, **{f"{side}_knee": buckle, f"{side}_hip": 0.6 * buckle, f"{side}_raise": flail})
    return poses, speed, turn


def _get_up(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    poses += _smooth(t / duration)[:, None] * (_standing(rng) - start.pose)
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
    poses, speed, _ = _still(t, start)
    envelope = _held(t, duration, 0.25)
    phase = 2 * np.pi * rng.uniform(0.9, 1.3) * t
    _gait(poses, phase, envelope, 0.08, 0.6, 0.1, 0.1)
    way = rng.choice([-1.0, 1.0])
    _add(poses, twist=0.35 * way * np.sin(np.pi * np.clip(1.3 * t / duration, 0, 1)))
    return poses, speed, way * np.pi * rng.uniform(0.85, 1.1) * _smooth(t / duration)


def _squat(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    down = _repeated(t, duration, rng.uniform(1.4, 2.4)) * rng.uniform(0.75, 1.0)
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
    poses, speed, turn = _still(t, start)
    down = _repeated(t, duration, rng.uniform(1.6, 2.6)) * rng.uniform(0.8, 1.0)
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
    poses, speed, turn = _still(t, start)
    up = _held(t, duration, rng.uniform(0.4, 0.6))
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
    poses, speed, turn = _still(t, start)
    up = _held(t, duration, 0.4)
    rate = rng.uniform(0.7, 1.2)  # punches of one arm a second
    twist = np.zeros(len(t))
    for side, shift, sign in (("left", 0.0, 1.0), ("right", 0.5, -1.0)):
        beat = (rate * t + shift) % 1.0
        # out fast, back slower
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
    poses, speed, turn = _still(t, start)
    up = _repeated(t, duration, rng.uniform(2.2, 3.6)) ** 0.8 * rng.uniform(0.9, 1.0)
    forward = rng.random() < 0.6
    for side in ("left", "right"):
        _add(poses, **{f"{side}_{'arm' if forward else 'raise'}": 2.8 * up})
    _add(poses, lean=-0.1 * up)
    return poses, speed, turn


def _bend(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    down = _held(t, duration, duration * rng.uniform(0.35, 0.5)) * rng.uniform(1.1, 1.5)
    for side in ("left", "right"):
        _add(
            poses,
            **{f"{side}_arm": 0.9 * down, f"{side}_hip": 0.12 * down, f"{side}_knee": 0.15 * down},
        )
    _add(poses, lean=down)
    return poses, speed, turn


def _hops(t, duration, rng):
    """(crouch, lift in m, flight 0..1) of hops on the spot; free flight, lift = g T^2 / 8."""
    count = max(1, round(duration / rng.uniform(0.75, 1.1)))
    period = duration / count
    beat = (t / period) % 1.0
    flight = np.clip((beat - 0.4) / 0.4, 0, 1)
    push, landing = (np.abs((beat - at + 0.5) % 1.0 - 0.5) for at in (0.22, 0.92))
    crouch = np.exp(-((push / 0.14) ** 2)) + 0.7 * np.exp(-((landing / 0.11) ** 2))
    lift = 9.81 * (0.4 * period) ** 2 / 8 * 4 * flight * (1 - flight)
    return crouch, np.minimum(lift, 0.45), flight


def _jump(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    crouch, lift, flight = _hops(t, duration, rng)
    crouch = crouch * _held(t, duration, 0.2) * rng.uniform(0.6, 1.0)
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
    poses, speed, turn = _still(t, start)
    count = max(1, round(duration * rng.uniform(0.9, 1.3)))
    opened = 0.5 - 0.5 * np.cos(2 * np.pi * count * t / duration)
    hop = 0.08 * np.sin(2 * np.pi * count * t / duration) ** 2
    arms, legs = rng.uniform(2.0, 2.6), rng.uniform(0.25, 0.4)
    for side in ("left", "right"):
        _add(poses, **{f"{side}_raise": arms * opened, f"{side}_spread": legs * opened})
    _add(poses, lift=hop)
    return poses, speed, turn


def _kick(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    count = max(1, round(duration / rng.uniform(1.3, 2.0)))
    beat = (count * t / duration) % 1.0
    leg, _ = _sides(rng)
    back = np.exp(-(((beat - 0.27) / 0.12) ** 2))
    out = np.exp(-(((beat - 0.55) / 0.15) ** 2))
    size = _held(t, duration, 0.2) * rng.uniform(0.8, 1.15)
    # both ankles carry the anchor, so the pelvis would follow the foot: let go of it
    _add(
        poses,
        **{f"{leg}_hip": size * (1.35 * out - 0.3 * back), f"{leg}_knee": size * 1.1 * back},
        lean=-0.2 * size * out,
        planted=-_held(t, duration, 0.2),
    )
    return poses, speed, turn


def _march(t, duration, start, rng) -> Trace:
    poses, speed, turn = _still(t, start)
    envelope = _held(t, duration, 0.3)
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
    return _still(t, start)


@attrs.frozen
class Action:
    """An action: how it moves, its shortest and longest duration, the posture it starts in (one of
    several) and ends in (None: the same), and how often it is drawn against others."""

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
"""What the simulated person can do. Walking left and right is meant as the radar sees it."""

_POSTURES = {"standing": _standing, "sitting": _sitting, "lying": _lying}


@attrs.frozen(eq=False)
class Performance:
    """A person doing actions in order.

    actions  their names;  phrases  how to tell each, after "a person"
    spans    (start, stop) second of each action
    points   body points in the room in m, `rate` a second
    girth    factor on the echo's amplitude
    sources  what it was made from, see `Clip.sources`; () for a simulated person
    """

    actions: tuple[str, ...]
    phrases: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    points: Float[np.ndarray, "F 20 3"]
    rate: float
    girth: float = 1.0
    sources: tuple[str, ...] = ()


def perform(
    rng: np.random.Generator,
    *,
    seconds: float | None = 10.0,
    number: int | None = None,
    actions: Sequence[str] | None = None,
) -> Performance:
    """A random person doing random actions, 2-4 different ones unless `number` or `actions` say.

    seconds  length of the whole; None: as long as the actions want
    Raises ValueError where the actions cannot follow one another, or do not fit into `seconds`.
    """
    given = None if actions is None else tuple(actions)
    if given is not None:
        _check_sequence(given)
    # one number for many tries, else those that fit more easily would come more often
    numbers = rng.permutation([2, 3, 4] if number is None else [number]).repeat(_TRIES_PER_NUMBER)
    for count in np.tile(numbers, 3):
        names = given or _draw_actions(rng, int(count))
        # several tries for the same actions, else those that want little room would win
        for _ in range(_TRIES_PER_SEQUENCE):
            times = _draw_times(rng, names, seconds)
            if times is not None and (told := _play(rng, names, *times)) is not None:
                return told
    what = given or f"{number or 'two to four'} actions"
    raise ValueError(
        f"found no way to do {what} in {seconds} s and within "
        f"{NEAREST_M}-{FARTHEST_M} m of the radar; change the actions or the seconds"
    )


def _check_sequence(names: tuple[str, ...]) -> None:
    postures = set(_POSTURES)
    for name in names:
        if name not in ACTIONS:
            raise ValueError(f"no action {name!r}; there are: {', '.join(ACTIONS)}")
        postures &= set(ACTIONS[name].starts)
        if not postures:
            raise ValueError(f"{name!r} starts {ACTIONS[name].starts}, not so ended what precedes")
        ends = ACTIONS[name].ends
        postures = {ends} if ends else postures
    if not names:
        raise ValueError("no action given")


def _draw_actions(rng, number: int) -> tuple[str, ...]:
    names: list[str] = []
    posture = str(rng.choice(["standing", "sitting", "lying"], p=[0.78, 0.14, 0.08]))
    while len(names) < number:
        able = [n for n, a in ACTIONS.items() if posture in a.starts and n not in names]
        weight = np.array([ACTIONS[n].weight for n in able])
        if not able:
            return _draw_actions(rng, number)
        name = able[int(rng.choice(len(able), p=weight / weight.sum()))]
        names.append(name)
        posture = ACTIONS[name].ends or posture
    return tuple(names)


def _draw_times(rng, names, seconds):
    """(durations, pauses before, between and after) that sum up to `seconds`, or None."""
    shares = np.array([rng.uniform(*ACTIONS[name].seconds) for name in names])
    still = rng.uniform(0.3, _STILL_AT_MOST_S)
    if seconds is not None:
        shares *= (seconds - still) / shares.sum()
        low, high = np.array([ACTIONS[name].seconds for name in names]).T
        if (shares < low).any() or (shares > high).any():
            return None
    return shares, rng.dirichlet(np.full(len(names) + 1, 2.0)) * still


def _play(rng, names, durations, pauses) -> Performance | None:
    """The movement, or None where it would leave the room."""
    person = Person(height_m=rng.uniform(1.5, 1.95), girth=rng.uniform(0.85, 1.2))
    away, right = rng.uniform(1.6, 7.2), rng.uniform(-0.4, 0.4)
    place = away * np.array([np.sqrt(1 - right**2), -right])
    toward = np.arctan2(-place[1], -place[0])
    heading = float(toward + (rng.normal(0, 0.5) if rng.random() < 0.75 else rng.uniform(0, 6.28)))
    starts = set(_POSTURES)
    for name in names:
        starts &= set(ACTIONS[name].starts)
        if ACTIONS[name].ends:
            break
    options = sorted(starts, reverse=True)  # "standing" before "sitting" before "lying"
    posture = options[0] if len(options) == 1 or rng.random() < 0.7 else options[1]
    current = _POSTURES[posture](rng)

    step = 1 / RATE
    clock = 0.0
    poses, paths, headings, spans = [], [], [], []
    for i, name in enumerate((*names, None)):
        bearing = float(np.arctan2(place[1], place[0]))
        rest = round(pauses[i] * RATE)
        poses.append(np.repeat(current[None], rest, axis=0))
        paths.append(np.repeat(place[None], rest, axis=0))
        headings.append(np.full(rest, heading))
        clock += rest * step
        if name is None:
            break
        count = round(durations[i] * RATE)
        t = (np.arange(count) + 1) * step
        moved, speed, turn = ACTIONS[name].move(
            t, count * step, _Start(current, heading, bearing), rng
        )
        facing = heading + turn
        path = place + step * np.cumsum(
            speed[:, None] * np.stack([np.cos(facing), np.sin(facing)], axis=-1), axis=0
        )
        distance = np.hypot(*path.T)
        if distance.min() < NEAREST_M or distance.max() > FARTHEST_M:
            return None
        if np.abs(path[:, 1] / distance).max() > WIDEST:
            return None
        poses.append(moved)
        paths.append(path)
        headings.append(facing)
        spans.append((clock, clock + count * step))
        clock += count * step
        current, place, heading = moved[-1], path[-1], float(facing[-1])

    every = np.concatenate(poses)
    _sway(every, rng)
    points = body_points(every, np.concatenate(paths), np.concatenate(headings), person)
    # somebody who falls towards the radar must not end behind it
    distance = np.hypot(points[..., 0], points[..., 1])
    if distance.min() < _CLOSEST_POINT_M or distance.max() > _FARTHEST_POINT_M:
        return None
    phrases = tuple(str(rng.choice(PHRASES[name])) for name in names)
    return Performance(tuple(names), phrases, tuple(spans), points, RATE, person.girth)


def _sway(poses, rng) -> None:
    """Nobody is quite still: breath and balance move the trunk by a few millimetres."""
    t = np.arange(len(poses)) / RATE
    for name, size in (("lean", 0.006), ("side", 0.004), ("twist", 0.006)):
        for _ in range(2):
            poses[:, COLUMN[name]] += size * np.sin(
                2 * np.pi * rng.uniform(0.15, 0.6) * t + rng.uniform(0, 2 * np.pi)
            )
