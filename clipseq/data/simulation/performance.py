"""Performances: a simulated person who does a sequence of random actions in the radar's room.

The radar stands over the origin and looks along +x; y points to its left. Each action starts and
ends in a posture (only a sitting person can stand up), so that a sequence of actions is one
continuous movement.
"""

from collections.abc import Sequence

import attrs
import numpy as np
from jaxtyping import Float

from clipseq.data.simulation.body import COLUMN, Person, body_points
from clipseq.data.simulation.captions import PHRASES
from clipseq.data.simulation.motions import ACTIONS, POSTURES, Start

RATE = 50.0
"""Samples of a performance per second; no motion is faster than about 5 Hz."""

NEAREST_M, FARTHEST_M, WIDEST = 1.2, 7.8, 0.5
"""Limits on the place of a person: smallest and largest distance, and largest |sin(bearing)|."""
_CLOSEST_POINT_M, _FARTHEST_POINT_M = 0.7, 9.2

_LONGEST_PAUSES_S = 1.4  # all pauses of a sequence together; "stands still" lasts longer than that
_TRIES_PER_NUMBER, _TRIES_PER_SEQUENCE = 60, 12


@attrs.frozen(eq=False)
class Performance:
    """A person who does actions in order.

    Attributes:
        actions: names of the actions.
        phrases: phrase for each action, which follows "a person".
        spans: (start, stop) of each action in seconds.
        points: body points in the room in m.
        rate: samples of `points` per second.
        girth: factor on the amplitude of the echo.
        sources: sources of a recorded performance, see `Clip.sources`; () for a simulated one.
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
    """Draw a random person who does random actions.

    Args:
        rng: random generator.
        seconds: total duration; None: the actions and pauses determine it.
        number: number of different actions; by default two to four.
        actions: names of the actions, instead of random ones.

    Raises:
        ValueError: the actions cannot follow one another, or do not fit into `seconds`.
    """
    given = None if actions is None else tuple(actions)
    if given is not None:
        _check_sequence(given)
    # The same number of actions is tried many times: otherwise, the numbers that fit more easily
    # would occur more often.
    numbers = rng.permutation([2, 3, 4] if number is None else [number]).repeat(_TRIES_PER_NUMBER)
    for count in np.tile(numbers, 3):
        names = given or _draw_actions(rng, int(count))
        # The same actions are tried several times: otherwise, those that need little room would
        # occur more often.
        for _ in range(_TRIES_PER_SEQUENCE):
            times = _draw_times(rng, names, seconds)
            if times is not None and (performance := _play(rng, names, *times)) is not None:
                return performance
    wanted = given or f"{number or 'two to four'} actions"
    raise ValueError(
        f"seconds must leave room for {wanted} within {NEAREST_M}-{FARTHEST_M} m of the radar, got "
        f"{seconds}; change the actions or the seconds"
    )


def _check_sequence(names: tuple[str, ...]) -> None:
    postures = set(POSTURES)
    for name in names:
        if name not in ACTIONS:
            raise ValueError(f"actions must be among {', '.join(ACTIONS)}, got {name!r}")
        starts = set(ACTIONS[name].starts)
        if not postures & starts:
            raise ValueError(
                f"{name!r} must start in one of {', '.join(sorted(starts))}, but the action before "
                f"it ends in one of {', '.join(sorted(postures))}"
            )
        postures &= starts
        ends = ACTIONS[name].ends
        postures = {ends} if ends else postures
    if not names:
        raise ValueError("actions must name at least one action, got none")


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
    """Draw durations and pauses (before, between and after) that last `seconds`, or return None."""
    shares = np.array([rng.uniform(*ACTIONS[name].seconds) for name in names])
    still = rng.uniform(0.3, _LONGEST_PAUSES_S)
    if seconds is not None:
        shares *= (seconds - still) / shares.sum()
        low, high = np.array([ACTIONS[name].seconds for name in names]).T
        if (shares < low).any() or (shares > high).any():
            return None
    return shares, rng.dirichlet(np.full(len(names) + 1, 2.0)) * still


def _play(rng, names, durations, pauses) -> Performance | None:
    """Return the performance, or None if it would leave the room."""
    person = Person(height_m=rng.uniform(1.5, 1.95), girth=rng.uniform(0.85, 1.2))
    away, right = rng.uniform(1.6, 7.2), rng.uniform(-0.4, 0.4)
    place = away * np.array([np.sqrt(1 - right**2), -right])
    toward = np.arctan2(-place[1], -place[0])
    heading = float(toward + (rng.normal(0, 0.5) if rng.random() < 0.75 else rng.uniform(0, 6.28)))
    starts = set(POSTURES)
    for name in names:
        starts &= set(ACTIONS[name].starts)
        if ACTIONS[name].ends:
            break
    options = sorted(starts, reverse=True)  # "standing" before "sitting" before "lying"
    posture = options[0] if len(options) == 1 or rng.random() < 0.7 else options[1]
    current = POSTURES[posture](rng)

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
            t, count * step, Start(current, heading, bearing), rng
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
    # A person who falls towards the radar must not end behind it.
    distance = np.hypot(points[..., 0], points[..., 1])
    if distance.min() < _CLOSEST_POINT_M or distance.max() > _FARTHEST_POINT_M:
        return None
    phrases = tuple(str(rng.choice(PHRASES[name])) for name in names)
    return Performance(tuple(names), phrases, tuple(spans), points, RATE, person.girth)


def _sway(poses, rng) -> None:
    """Add the few millimetres by which breathing and balancing move a person's trunk."""
    t = np.arange(len(poses)) / RATE
    for name, size in (("lean", 0.006), ("side", 0.004), ("twist", 0.006)):
        for _ in range(2):
            poses[:, COLUMN[name]] += size * np.sin(
                2 * np.pi * rng.uniform(0.15, 0.6) * t + rng.uniform(0, 2 * np.pi)
            )
