"""Simulated data sets: people moving in front of a radar, and captions that describe them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np
import torch

from clipseq.data.arrays import load_arrays
from clipseq.data.clip import SPLITS, Clip
from clipseq.data.dataset import MapDataset
from clipseq.data.folder_format import (
    CLIPS_PER_FILE,
    UNFINISHED,
    maps_file,
    read_head,
    write_index,
    write_maps,
)
from clipseq.data.header import Header
from clipseq.data.simulation import body, mocap, performance
from clipseq.data.simulation.captions import PHRASES, class_caption, describe_in_order
from clipseq.data.simulation.motions import ACTIONS
from clipseq.data.simulation.radar import Radar, observe
from clipseq.engine.files import write_text
from clipseq.engine.options import check_kind, finite_number, to_path, whole_number
from clipseq.errors import DataError

SPLIT_SHARES = {"train": 0.75, "val": 0.05, "test": 0.1, "zeroshot": 0.1}
"""Share of each split in a simulated data set."""


def simulate(
    out: str | os.PathLike[str],
    clips: int = 1000,
    *,
    seed: int = 0,
    seconds: float = 10.0,
    motion: str | os.PathLike[str] | None = None,
    radar: Radar | None = None,
    clutter: int = 0,
    split_shares: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MapDataset:
    """Simulate `clips` clips into the folder `out`, and open it as a data set.

    A clip of the splits train, val and test lasts `seconds` and shows two to four actions in order.
    A clip of zeroshot shows a single action, which determines its duration and is its label. Every
    clip shows a new person, with their own measurements, place, pace and style of movement.

    Clip i depends only on (seed, i) and the arguments. After an interruption, call `simulate` again
    with the same arguments to complete the folder; a complete folder is only opened.

    Args:
        out: folder of the data set.
        clips: number of clips.
        seed: random seed; the same seed gives the same clips.
        seconds: duration of a clip of train, val and test.
        motion: a recording (`uiprmd_points.npz`) that moves the people instead of clipseq's own
            motions; a split then contains only subjects that the file assigns to it.
        radar: the radar, by default `Radar()`, with the views range_time 64 x T, doppler_time
            64 x T and azimuth_time 32 x T at 16 frames per second.
        clutter: number of objects at rest in the room of each clip, at random places, with radar
            cross-sections of 0.1 to 1 m^2.
        split_shares: share of each split, by default 75 % train, 5 % val, 10 % test, 10 % zeroshot.
        progress: called as progress(done, clips) after each file.

    Raises:
        DataError: the folder holds another data set or other files.
        ValueError: a number is out of its range.
        TypeError: an argument is of another kind.
    """
    out = to_path("out", out)
    motion = None if motion is None else to_path("motion", motion)
    check_kind("radar", radar, (Radar, type(None)), "a Radar or None")
    check_kind("split_shares", split_shares, (Mapping, type(None)), "a mapping or None")
    radar = radar or Radar()
    shares = dict(SPLIT_SHARES if split_shares is None else split_shares)
    for name, value, lowest in (("clips", clips, 1), ("seed", seed, 0), ("clutter", clutter, 0)):
        whole_number(name, value, least=lowest, most=2**63 - 1)
    if finite_number("seconds", seconds) <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if unknown := shares.keys() - set(SPLITS):
        raise ValueError(f"split_shares must name splits among {SPLITS}, got {sorted(unknown)}")
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"split_shares must be shares that sum up to 1, got {shares}")
    recordings = None if motion is None else mocap.read_recordings(Path(motion))
    arguments = {
        "clips": clips,
        "seed": seed,
        "seconds": seconds,
        "motion": None if motion is None else _fingerprint(Path(motion)),
        "radar": attrs.asdict(radar),
        "clutter": clutter,
        "split_shares": shares,
    }
    if _begin(out, arguments):
        return MapDataset(out)

    classes = (
        {name: class_caption(PHRASES[name][0]) for name in ACTIONS}
        if recordings is None
        else {name: class_caption(phrase) for name, phrase in recordings.phrases.items()}
    )
    splits, labels = _assign_splits(clips, shares), sorted(classes)
    done: list[Clip] = []
    for start in range(0, clips, CLIPS_PER_FILE):
        scenes = []
        for i in range(start, min(start + CLIPS_PER_FILE, clips)):
            label = labels[i % len(labels)] if splits[i] == "zeroshot" else None
            scenes.append(_make_scene(i, seed, recordings, radar, seconds, splits[i], label))
        counts = [scene.frames for scene in scenes]
        maps = _read_finished(out / maps_file(start), counts, radar.views)
        part = []
        with _single_thread():
            for k, scene in enumerate(scenes):
                seen = _observe(radar, scene, clutter) if maps is None else maps[k]
                part.append(attrs.evolve(scene.clip, signal=seen))
        if maps is None:
            write_maps(out, start, part)
        done += part
        if progress is not None:
            progress(len(done), clips)
    header = Header(
        modality="radar",
        frame_rate=radar.frame_rate,
        axes=radar.described_axes(),
        class_captions=classes,
    )
    dataset = MapDataset.from_clips(done, **attrs.asdict(header, recurse=False))
    write_index(out, done, header, simulated=arguments)
    (out / UNFINISHED).unlink()
    return dataset


@attrs.frozen(eq=False)
class _Scene:
    """A clip before the radar observes it.

    Attributes:
        clip: the clip without its maps.
        performance: the person's movement.
        frames: number of frames.
        noise: random generator for the radar's noise and the clutter.
    """

    clip: Clip
    performance: performance.Performance
    frames: int
    noise: np.random.Generator


def _make_scene(
    i: int,
    seed: int,
    recordings: mocap.Recordings | None,
    radar: Radar,
    seconds: float,
    split: str,
    label: str | None,
) -> _Scene:
    # Each purpose has its own random stream, so that the captions of a file that an earlier run has
    # written can be drawn again without simulating its maps again.
    acting, wording, noise = (
        np.random.default_rng(s) for s in np.random.SeedSequence((seed, i)).spawn(3)
    )
    act = _perform(recordings, acting, split, label, None if label else seconds)
    length = len(act.points) / act.rate if label else seconds
    frames = round(length * radar.frame_rate)
    id = f"{split}-{i:05d}"
    clip = _describe(id, act, wording, radar.frame_rate, frames, split, label)
    return _Scene(clip, act, frames, noise)


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """Limit torch to one thread.

    The transforms are so short here that threads mostly wait for one another: a hundred
    milliseconds per clip on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _perform(recordings, rng, split, label, seconds) -> performance.Performance:
    if recordings is not None:
        return recordings.perform(rng, split, seconds=seconds, label=label)
    return performance.perform(rng, seconds=seconds, actions=None if label is None else (label,))


def _observe(radar: Radar, scene: _Scene, clutter: int) -> dict[str, np.ndarray]:
    act, rng = scene.performance, scene.noise
    points, rcs = body.scatterers(act.points), body.RCS * act.girth**2
    if clutter:
        away, right = rng.uniform(1.0, 9.0, clutter), rng.uniform(-0.7, 0.7, clutter)
        place = np.stack(
            [away * np.sqrt(1 - right**2), -away * right, rng.uniform(0, 2, clutter)], axis=-1
        )
        at_rest = np.broadcast_to(place, (len(points), *place.shape))
        points = np.concatenate([points, at_rest], axis=1)
        rcs = np.concatenate([rcs, rng.uniform(0.1, 1.0, clutter)])
    maps = observe(radar, points, act.rate, rcs, scene.frames, rng)
    return {view: m.astype(np.float16) for view, m in maps.items()}


def _fingerprint(path: Path) -> str:
    """Return the name and the hash of the file, which identify it."""
    return f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _begin(out: Path, arguments: dict) -> bool:
    """Prepare the folder; return True if it holds this simulation, complete."""
    note = out / UNFINISHED
    if (out / "dataset.json").exists():
        if read_head(out).get("simulated") == arguments:
            note.unlink(missing_ok=True)
            return True
        raise DataError(f"{out} holds another data set; remove it or choose another folder")
    if note.exists():
        try:
            begun = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{note} cannot be read: {error}; remove the folder") from error
        if begun != arguments:
            raise DataError(
                f"{out} holds an unfinished simulation with other arguments, {begun}; pass the "
                "same arguments, remove the folder, or choose another"
            )
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder; remove it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(arguments, indent=2))
    return False


def _read_finished(
    path: Path, counts: list[int], views: Mapping[str, int]
) -> list[dict[str, np.ndarray]] | None:
    """Return the maps of each clip in a file that an earlier run has finished, or None."""
    if not path.exists():
        return None
    try:
        joined = load_arrays(path)
    except DataError:
        return None
    if {view: m.shape for view, m in joined.items()} != {
        view: (bins, sum(counts)) for view, bins in views.items()
    }:
        return None
    ends = np.cumsum(counts)
    return [
        {view: m[:, end - count : end] for view, m in joined.items()}
        for end, count in zip(ends, counts, strict=True)
    ]


def _assign_splits(clips: int, shares: Mapping[str, float]) -> list[str]:
    """Return the split of each clip: splits are contiguous, in the order of `SPLITS`."""
    ends = np.round(np.cumsum([shares.get(split, 0.0) for split in SPLITS]) * clips).astype(int)
    return [SPLITS[int(np.searchsorted(ends, i, side="right"))] for i in range(clips)]


def _describe(
    id: str,
    act: performance.Performance,
    rng: np.random.Generator,
    frame_rate: float,
    frames: int,
    split: str,
    label: str | None,
) -> Clip:
    """Return the clip without its maps."""
    caption, permuted = describe_in_order(act.phrases, rng)
    spans = tuple(
        (int(start * frame_rate), min(frames, round(stop * frame_rate)))
        for start, stop in act.spans
    )
    return Clip(
        id=id,
        signal={},
        caption=caption,
        actions=act.actions,
        spans=spans,
        permuted=permuted,
        sources=act.sources or (id,),
        split=split,
        label=label,
    )
