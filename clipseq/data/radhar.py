"""Real mmWave recordings (`radhar_maps`) as clips of several activities in order.

Each recording shows one activity. A clip joins windows of recordings of one block (one session of
one day), so that only the activity distinguishes its parts.
"""

import os
from collections.abc import Mapping

import numpy as np

from clipseq.data.arrays import check_rate, load_arrays
from clipseq.data.clip import Clip
from clipseq.data.dataset import MapDataset
from clipseq.data.simulation.captions import class_caption, describe_in_order
from clipseq.engine.options import to_path, whole_number
from clipseq.errors import DataError

VIEWS = ("range_moving", "doppler", "azimuth_moving")
"""The views used: those without static returns, because static clutter reveals the session."""

RECORDED_FRAMES = 2
"""Number of recorded frames that one frame of a clip combines: 30 frames per second become 15.

They are combined by their maximum, because a point cloud is sparse.
"""

DECIBELS: dict[str, tuple[float, float]] = {
    "range_moving": (0.36, 3.1),
    "doppler": (3.1, 9.4),
    "azimuth_moving": (0.59, 3.9),
}
"""Mean and standard deviation of each view over the training recordings, empty cells at 0 dB."""

PHRASES: dict[str, tuple[str, ...]] = {
    "boxing": ("is boxing", "throws punches", "boxes"),
    "jack": ("does jumping jacks", "does star jumps", "jumps opening arms and legs"),
    "jump": ("is jumping", "hops on the spot", "jumps up and down"),
    "squats": ("does squats", "squats down repeatedly", "does knee bends"),
    "walk": ("is walking", "walks around", "walks back and forth"),
}
"""Phrases for each activity, which follow "a person"; the first one is the phrase of the file."""

_KEYS = (*VIEWS, "length", "label", "class_names", "block", "split", "name", "fps")


def radhar_dataset(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    clips: Mapping[str, int] | None = None,
    window_seconds: tuple[float, float] = (3.0, 5.0),
) -> MapDataset:
    """Splice the recordings of `radhar_maps.npz` into ordered sequences of two to four activities.

    A clip joins windows of different activities from different recordings of one block and of
    one split of the file (test = block 3). The split zeroshot holds every test recording, cut into
    four windows of one activity each. A byte v of the file is v/6 dB; a map holds
    (v/6 - mean) / scale with the constants in `DECIBELS`.

    Args:
        path: the file.
        seed: random seed for the choice of recordings, windows and phrases.
        clips: number of clips of each split, by default train 1200, val 150, test 300.
        window_seconds: shortest and longest window cut from a recording.

    Returns:
        A data set of modality "radar".

    Raises:
        DataError: the file is missing, corrupt or of another format.
        ValueError: a split is unknown, or the longest window is longer than a recording.
        TypeError: `path` is not a path, or `seed` is not a whole number.
    """
    path = to_path("path", path)
    seed = whole_number("seed", seed, most=2**63 - 1)
    arrays = load_arrays(path)
    if missing := set(_KEYS) - arrays.keys():
        raise DataError(f"{path} must be radhar_maps.npz, got a file that lacks {sorted(missing)}")
    counts = dict({"train": 1200, "val": 150, "test": 300} if clips is None else clips)
    if unknown := counts.keys() - {"train", "val", "test"}:
        raise ValueError(f"clips must name splits of train, val and test, got {sorted(unknown)}")
    low, high = window_seconds
    if not 0 < low <= high:
        raise ValueError(
            f"window_seconds must be (shortest, longest) with 0 < shortest <= longest, "
            f"got {window_seconds}"
        )

    try:
        maps = {view: _standardised(arrays[view], view) for view in VIEWS}
        rate = float(arrays["fps"]) / RECORDED_FRAMES
        lengths = arrays["length"].astype(int) // RECORDED_FRAMES
        classes = arrays["class_names"].tolist()
        labels = [classes[k] for k in arrays["label"]]
        names, splits = arrays["name"].tolist(), arrays["split"].tolist()
        blocks = arrays["block"].tolist()
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path} must be radhar_maps.npz, got another content: {error}") from error
    check_rate(rate, f"{path}: fps")
    if unknown := set(classes) - PHRASES.keys():
        raise DataError(
            f"{path}: class_names must be some of {list(PHRASES)}, got {sorted(unknown)}"
        )
    if int(lengths.min()) < high * rate:
        raise ValueError(
            f"window_seconds must be at most {lengths.min() / rate:.1f} s, the shortest recording, "
            f"got {window_seconds}"
        )

    made: list[Clip] = []
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng((seed, number))
        group = [i for i, s in enumerate(splits) if s == split]
        if count and not group:
            raise DataError(
                f"{path}: split must hold a recording for each split of clips, got no recording "
                f"in split {split!r}"
            )
        for k in range(count):
            block = blocks[group[rng.integers(len(group))]]
            mine = [i for i in group if blocks[i] == block]
            able = sorted({labels[i] for i in mine})
            actions = rng.permutation(able)[: rng.integers(2, min(4, len(able)) + 1)].tolist()
            windows, spans, sources, clock = [], [], [], 0
            for action in actions:
                options = [i for i in mine if labels[i] == action]
                i = options[rng.integers(len(options))]
                width = round(rng.uniform(low, high) * rate)
                start = int(rng.integers(lengths[i] - width + 1))
                windows.append((i, start, start + width))
                spans.append((clock, clock + width))
                sources.append(names[i])
                clock += width
            phrases = [str(rng.choice(PHRASES[action])) for action in actions]
            caption, permuted = describe_in_order(phrases, rng)
            made.append(
                Clip(
                    id=f"{split}-{k:05d}",
                    signal=_joined(maps, windows),
                    caption=caption,
                    actions=tuple(actions),
                    spans=tuple(spans),
                    permuted=permuted,
                    sources=tuple(sources),
                    split=split,
                )
            )
    class_captions = {name: class_caption(PHRASES[name][0]) for name in classes}
    if counts.get("test"):
        made += _one_action(maps, lengths, names, labels, splits, class_captions)
    return MapDataset.from_clips(made, frame_rate=rate, class_captions=class_captions)


def _one_action(maps, lengths, names, labels, splits, class_captions) -> list[Clip]:
    """Cut every test recording into four clips of one activity."""
    made = []
    for i in (i for i, split in enumerate(splits) if split == "test"):
        width = lengths[i] // 4
        for k in range(4):
            made.append(
                Clip(
                    id=f"zeroshot-{names[i]}-{k}",
                    signal=_joined(maps, [(i, k * width, (k + 1) * width)]),
                    caption=class_captions[labels[i]],
                    actions=(labels[i],),
                    spans=((0, int(width)),),
                    sources=(names[i],),
                    split="zeroshot",
                    label=labels[i],
                )
            )
    return made


def _joined(maps, windows) -> dict[str, np.ndarray]:
    return {
        view: np.concatenate([m[i, :, a:b] for i, a, b in windows], axis=1)
        for view, m in maps.items()
    }


def _standardised(values, view):
    """Turn (N, T, F) bytes into standardised maps (N, F, T / RECORDED_FRAMES), float16."""
    count, frames, bins = values.shape
    frames -= frames % RECORDED_FRAMES
    joined = values[:, :frames].reshape(count, -1, RECORDED_FRAMES, bins).max(axis=2)
    mean, scale = DECIBELS[view]
    lookup = ((np.arange(256) / 6 - mean) / scale).astype(np.float16)
    return lookup[joined].transpose(0, 2, 1)
