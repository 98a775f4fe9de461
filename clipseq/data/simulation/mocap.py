"""Recorded motion (`uiprmd_points`) that moves the simulated people.

The file holds segments of 20 body points (`body.POINTS`), one movement each. Every segment starts
and ends standing, so that segments of one subject can be spliced into sequences. The keys of the
file, for N segments with F frames in total and K movements:

    points_delta2   (20, 3, F) whole numbers: second differences over time, see `read_recordings`
    offsets         (N + 1,) first frame of each segment, then F
    quantum_m, fps  the unit in m; frames per second (25)
    point_names     (20,) `body.POINTS`
    label           (N,) number of the movement
    class_names, captions   (K,) name of each movement, and a phrase for it after "a person"
    subject, split  (N,) a whole number; "train", "val" or "test"
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
from jaxtyping import Float

from clipseq.data.arrays import check_rate, load_arrays
from clipseq.data.simulation.body import POINTS
from clipseq.data.simulation.performance import FARTHEST_M, NEAREST_M, WIDEST, Performance
from clipseq.errors import DataError

_KEYS = {
    "points_delta2", "offsets", "quantum_m", "point_names", "fps",
    "label", "class_names", "captions", "subject", "split",
}  # fmt: skip
_BLEND_S = 0.4  # from the end of a segment to the start of the next


@attrs.frozen(eq=False)
class Recordings:
    """Decoded segments of recorded motion.

    Attributes:
        points: each segment (F, 20, 3) in m, z up from the floor, facing +x at first.
        labels: class name of each segment.
        subjects: number of the person in each segment.
        splits: split of each segment.
        phrases: phrase for each class, which follows "a person".
        rate: frames per second.
    """

    points: tuple[Float[np.ndarray, "_ 20 3"], ...] = attrs.field(repr=False)
    labels: tuple[str, ...] = attrs.field(repr=False)
    subjects: tuple[int, ...] = attrs.field(repr=False)
    splits: tuple[str, ...] = attrs.field(repr=False)
    phrases: dict[str, str]
    rate: float

    def perform(
        self,
        rng: np.random.Generator,
        split: str,
        *,
        seconds: float | None = 10.0,
        label: str | None = None,
    ) -> Performance:
        """Draw a sequence of segments of one subject, at a random place in front of the radar.

        Without a label, these are two to four movements of different classes, which together with
        the pauses between them last `seconds`. With a label, it is one segment of that class. The
        split "zeroshot" draws from the segments of "test".

        Raises:
            DataError: the split has no segment, or no segment with this label.
            ValueError: no two segments of a subject fit into `seconds`.
        """
        group = "test" if split == "zeroshot" else split
        mine = [i for i, s in enumerate(self.splits) if s == group]
        if label is not None:
            mine = [i for i in mine if self.labels[i] == label]
        if not mine:
            what = f"of {label!r} " if label else ""
            raise DataError(f"the recordings have no segment {what}in the split {group!r}")
        subject = self.subjects[mine[rng.integers(len(mine))]]
        mine = [i for i in mine if self.subjects[i] == subject]
        if label is None:
            chosen = self._choose(rng, mine, seconds)
        else:
            chosen = [mine[rng.integers(len(mine))]]
        rests = np.full(len(chosen) + 1, _BLEND_S)
        if seconds is not None:
            spare = seconds - sum(len(self.points[i]) for i in chosen) / self.rate - rests.sum()
            rests += max(0.0, spare) * rng.dirichlet(np.full(len(rests), 2.0))
        points, spans = self._splice(chosen, rests)
        return Performance(
            actions=tuple(self.labels[i] for i in chosen),
            phrases=tuple(self.phrases[self.labels[i]] for i in chosen),
            spans=spans,
            points=_place(points, rng),
            rate=self.rate,
            sources=tuple(f"segment-{i:04d}" for i in chosen),
        )

    def _choose(self, rng, mine, seconds) -> list[int]:
        """Draw segments of different classes that fit: two, and up to two more if there is room."""
        number = int(rng.integers(2, 5))
        for _ in range(200):
            order = rng.permutation(mine)
            chosen: list[int] = []
            length = _BLEND_S
            for i in order:
                if self.labels[i] in {self.labels[j] for j in chosen}:
                    continue
                more = len(self.points[i]) / self.rate + _BLEND_S
                if seconds is not None and length + more > seconds:
                    continue
                chosen.append(int(i))
                length += more
                if len(chosen) == number:
                    break
            if len(chosen) >= 2:
                return chosen
        raise ValueError(f"seconds must leave room for two segments of a subject, got {seconds}")

    def _splice(self, chosen, rests):
        pieces, spans, clock = [], [], 0
        before = self.points[chosen[0]][:1]
        for i, rest in zip(chosen, rests, strict=False):
            here = self.points[i]
            count = max(2, round(rest * self.rate))
            ease = np.linspace(0, 1, count + 1, endpoint=False)[1:, None, None]
            ease = ease**3 * (10 - 15 * ease + 6 * ease**2)
            pieces += [before + ease * (here[:1] - before), here]
            spans.append(((clock + count) / self.rate, (clock + count + len(here)) / self.rate))
            clock += count + len(here)
            before = here[-1:]
        pieces.append(np.repeat(before, max(2, round(rests[-1] * self.rate)), axis=0))
        return np.concatenate(pieces), tuple(spans)


def _place(points, rng):
    """Move the person to a random place in the room, usually facing the radar."""
    reach = np.hypot(points[..., 0], points[..., 1]).max()
    away = rng.uniform(NEAREST_M + reach, max(NEAREST_M + reach, FARTHEST_M - reach))
    right = rng.uniform(-0.8, 0.8) * WIDEST
    heading = (
        np.pi
        - np.arcsin(right)
        + (rng.normal(0, 0.5) if rng.random() < 0.75 else rng.uniform(0, 2 * np.pi))
    )
    c, s = np.cos(heading), np.sin(heading)
    turned = points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    return turned + away * np.array([np.sqrt(1 - right**2), -right, 0.0])


def read_recordings(path: Path) -> Recordings:
    """Read and decode a file in the format of `uiprmd_points.npz`.

    Segment a:b of `points_delta2` (20, 3, F) holds second differences over time, in units of
    `quantum_m`. Two cumulative sums give the positions; the first two entries of a segment encode
    its initial position and velocity.

    Raises:
        DataError: the file is missing, corrupt or in another format.
    """
    arrays = load_arrays(path)
    if missing := _KEYS - arrays.keys():
        raise DataError(f"{path} must be a recording of body points, but lacks {sorted(missing)}")
    try:
        recordings = _decode(arrays, path)
    except DataError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path} must be a recording of body points: {error}") from error
    check_rate(recordings.rate, f"{path}: fps")
    return recordings


def _decode(arrays: Mapping[str, np.ndarray], path: Path) -> Recordings:
    names, deltas = tuple(arrays["point_names"].tolist()), arrays["points_delta2"]
    if names != POINTS or deltas.shape[:2] != (len(POINTS), 3):
        raise DataError(
            f"{path}: points must be {POINTS} in shape (20, 3, F), got {names} {deltas.shape}"
        )
    offsets = arrays["offsets"].astype(int)
    count = len(offsets) - 1
    for key in ("label", "subject", "split"):
        if arrays[key].shape != (count,):
            raise DataError(f"{path}: {key} must have shape ({count},), got {arrays[key].shape}")
    if offsets[0] != 0 or offsets[-1] != deltas.shape[2] or (np.diff(offsets) < 2).any():
        raise DataError(
            f"{path}: offsets must cut the {deltas.shape[2]} frames into segments of at least 2"
        )
    deltas = deltas.transpose(2, 0, 1).astype(np.int64)
    quantum = float(arrays["quantum_m"])
    points = []
    for a, b in itertools.pairwise(offsets):
        segment = deltas[a:b].copy()
        segment[1:] = segment[1:].cumsum(axis=0)
        points.append(segment.cumsum(axis=0) * quantum)
    class_names = arrays["class_names"].tolist()
    return Recordings(
        points=tuple(points),
        labels=tuple(class_names[k] for k in arrays["label"]),
        subjects=tuple(arrays["subject"].tolist()),
        splits=tuple(arrays["split"].tolist()),
        phrases=dict(zip(class_names, arrays["captions"].tolist(), strict=True)),
        rate=float(arrays["fps"]),
    )
