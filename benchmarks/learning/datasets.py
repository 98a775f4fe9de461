"""The data sets of the benchmark: real recordings and simulations, spliced into ordered clips."""

import itertools
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np

from clipseq.data import Clip, MapDataset, radhar_dataset, simulate

TAKES = {"test": range(5), "val": range(5, 8), "train": range(8, 50)}
"""Takes of a digit in each split, if all speakers are known; FSDD's own test takes are 0 to 4."""

MEAN, SCALE = -9.0, 3.5
"""Mean and standard deviation of the digits' log-mel frames, about."""


class MissingRecordings(Exception):
    """The reason why a data set cannot be made here."""


@attrs.frozen
class Counts:
    """Number of clips of each split of a spliced data set, and of all clips of a simulated one."""

    train: int
    val: int
    test: int
    simulated: int


def simulated(recordings: Path, cache: Path, counts: Counts) -> MapDataset:
    """Return the simulator's own motions; every clip shows a new person."""
    return simulate(cache / f"simulated-{counts.simulated}", clips=counts.simulated)


def captured(recordings: Path, cache: Path, counts: Counts) -> MapDataset:
    """Return recorded motions in front of the simulated radar; the test subjects are unseen."""
    motion = _find(recordings, "uiprmd_points")
    return simulate(cache / f"captured-{counts.simulated}", clips=counts.simulated, motion=motion)


def radar(recordings: Path, cache: Path, counts: Counts) -> MapDataset:
    """Return spliced mmWave recordings; the test block is unseen."""
    clips = {"train": counts.train, "val": counts.val, "test": counts.test}
    return radhar_dataset(_find(recordings, "radhar_maps"), clips=clips)


def digits(recordings: Path, cache: Path, counts: Counts) -> MapDataset:
    """Return strings of spoken digits by known speakers; the test takes are unseen."""
    return digit_strings(_find(recordings, "fsdd_logmel"), counts, known_speakers=True)


def digits_unheard(recordings: Path, cache: Path, counts: Counts) -> MapDataset:
    """Return strings of spoken digits; the test speaker is unseen, and so is that of val."""
    return digit_strings(_find(recordings, "fsdd_logmel"), counts, known_speakers=False)


DATASETS: dict[str, Callable[[Path, Path, Counts], MapDataset]] = {
    "radar": radar,
    "digits": digits,
    "digits-unheard": digits_unheard,
    "captured": captured,
    "simulated": simulated,
}
"""Functions of the folder of recordings, a folder to write to, and the numbers of clips."""

SIGNALS: dict[str, dict[str, float]] = {
    "digits": {"mean_subtraction": 1.0},
    "digits-unheard": {"mean_subtraction": 1.0},
}
"""Options that `clipseq init` sets for the kind of signal of a data set; every model has them."""


def digit_strings(path: Path, counts: Counts, *, known_speakers: bool, seed: int = 0) -> MapDataset:
    """Splice the recordings of `fsdd_logmel.npz` into strings of two to four different digits.

    A string has one speaker, and a recording is in one split only.

    Args:
        path: the file.
        counts: number of strings of each split.
        known_speakers: True: every speaker is in every split, with different `TAKES`; False: the
            splits are those of the file, with different speakers.
        seed: random seed of the strings.
    """
    with np.load(path, allow_pickle=False) as arrays:
        levels = arrays["logmel_u8"] * arrays["scale"] + arrays["zero"]
        offsets, labels, takes = arrays["offsets"], arrays["label"], arrays["take"]
        speakers, splits = arrays["speaker"].tolist(), arrays["split"].tolist()
        words, rate = arrays["class_names"].tolist(), float(arrays["fps"])
    frames = ((levels - MEAN) / SCALE).astype(np.float16).T
    if known_speakers:
        splits = [next(name for name in TAKES if take in TAKES[name]) for take in takes]
    choices: dict[tuple[str, str, str], list[int]] = {}
    for i, keys in enumerate(zip(splits, speakers, (words[k] for k in labels), strict=True)):
        choices.setdefault(keys, []).append(i)
    clips = []
    for number, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng((seed, number))
        able = sorted({speaker for there, speaker, _ in choices if there == split})
        for k in range(getattr(counts, split)):
            speaker = able[rng.integers(len(able))]
            string = tuple(rng.permutation(words)[: rng.integers(2, 5)].tolist())
            sources = [
                options[rng.integers(len(options))]
                for options in (choices[split, speaker, word] for word in string)
            ]
            ends = np.cumsum([offsets[i + 1] - offsets[i] for i in sources]).tolist()
            maps = [frames[:, offsets[i] : offsets[i + 1]] for i in sources]
            clips.append(
                Clip(
                    id=f"{split}-{k:05d}",
                    signal={"logmel": np.concatenate(maps, axis=1)},
                    caption=" ".join(string),
                    actions=string,
                    spans=tuple(zip([0, *ends[:-1]], ends, strict=True)),
                    permuted=tuple(" ".join(p) for p in itertools.permutations(string))[1:],
                    sources=tuple(f"{words[labels[i]]}-{speaker}-{takes[i]}" for i in sources),
                    split=split,
                )
            )
    return MapDataset.from_clips(clips, modality="audio", frame_rate=rate)


def _find(recordings: Path, name: str) -> Path:
    path = recordings / name / f"{name}.npz"
    if not path.is_file():
        raise MissingRecordings(f"{path} does not exist")
    return path
