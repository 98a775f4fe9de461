"""Simulated datasets: persons in motion before a radar, told in captions."""

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
    write_text,
)
from clipseq.data.header import Header
from clipseq.data.simulation import body, mocap, motions
from clipseq.data.simulation.captions import PHRASES, class_caption, tell_in_order
from clipseq.data.simulation.radar import Radar, observe
from clipseq.errors import DataError

SPLIT_SHARES = {"train": 0.75, "val": 0.05, "test": 0.1, "zeroshot": 0.1}


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
    """Simulates `clips` clips into the dataset folder `out` and opens it.

    A clip of train, val and test lasts `seconds` and tells two to four actions in order; one of
    zeroshot shows a single action for as long as it takes and carries it as its label. Every
    person is a new one, with their own measures, place, pace and manner.

    Clip i depends on (seed, i) and the arguments alone. Interrupted, nothing is lost: called
    again with the same arguments, `simulate` completes the folder; a complete one it only opens.

    Args:
        out: the folder.
        clips: how many.
        seed: the same seed gives the same clips.
        seconds: length of a clip of train, val and test.
        motion: a recording (`uiprmd_points.npz`) to move the persons by instead of clipseq's own
            motions; a split then only has recordings of the subjects that the file gives it.
        radar: by default `Radar()`: range_time 64 x T, doppler_time 64 x T, azimuth_time 32 x T,
            16 frames/s.
        clutter: number of things at rest in each clip's room, at random places, of 0.1 to 1 m^2.
        split_shares: share of each split, by default 75 % train, 5 % val, 10 % test, 10 % zeroshot.
        progress: called as progress(done, clips) after every file written.

    Raises:
        DataError: the folder holds something else.
        ValueError: a number out of its range.
    """
    out = Path(out)
    radar = radar or Radar()
    shares = dict(SPLIT_SHARES if split_shares is None else split_shares)
    if clips < 1 or seed < 0 or clutter < 0 or seconds <= 0:
        raise ValueError(
            "wanted clips >= 1, seed >= 0, clutter >= 0 and seconds > 0, "
            f"got clips={clips}, seed={seed}, clutter={clutter}, seconds={seconds}"
        )
    if unknown := shares.keys() - set(SPLITS):
        raise ValueError(f"split_shares: no split {sorted(unknown)}; splits are {SPLITS}")
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
        {name: class_caption(PHRASES[name][0]) for name in motions.ACTIONS}
        if recordings is None
        else {name: class_caption(phrase) for name, phrase in recordings.phrases.items()}
    )
    splits, labels = _assign(clips, shares), sorted(classes)
    done: list[Clip] = []
    for start in range(0, clips, CLIPS_PER_FILE):
        batch = range(start, min(start + CLIPS_PER_FILE, clips))
        acts = []
        for i in batch:
            split = splits[i]
            label = labels[i % len(labels)] if split == "zeroshot" else None
            # a stream of its own for each purpose, so that a part that an earlier run has
            # written is told again without being observed again
            acting, telling, noise = (
                np.random.default_rng(s) for s in np.random.SeedSequence((seed, i)).spawn(3)
            )
            act = _act(recordings, acting, split, label, None if label else seconds)
            length = len(act.points) / act.rate if label else seconds
            count = round(length * radar.frame_rate)
            clip = _tell(f"{split}-{i:05d}", act, telling, radar.frame_rate, count, split, label)
            acts.append((act, count, clip, noise))
        maps = _written(out / maps_file(start), [count for _, count, _, _ in acts], radar.views)
        part = []
        with _single_thread():
            for k, (act, count, clip, noise) in enumerate(acts):
                seen = _observe(radar, act, clutter, count, noise) if maps is None else maps[k]
                part.append(attrs.evolve(clip, signal=seen))
        if maps is None:
            write_maps(out, start, part)
        done += part
        if progress is not None:
            progress(len(done), clips)
    header = Header(modality="radar", frame_rate=radar.frame_rate, class_captions=classes)
    dataset = MapDataset.from_clips(done, **attrs.asdict(header))
    write_index(out, done, header, simulated=arguments)
    (out / UNFINISHED).unlink()
    return dataset


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """Keeps torch to one thread: its transforms are so short here that threads only wait for one
    another, for a hundred milliseconds a clip where something else is running."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _act(recordings, rng, split, label, seconds) -> motions.Performance:
    if recordings is not None:
        return recordings.perform(rng, split, seconds=seconds, label=label)
    return motions.perform(rng, seconds=seconds, actions=None if label is None else (label,))


def _observe(radar, act, clutter, count, rng):
    points, rcs = body.scatterers(act.points), body.RCS * act.girth**2
    if clutter:
        away, right = rng.uniform(1.0, 9.0, clutter), rng.uniform(-0.7, 0.7, clutter)
        place = np.stack(
            [away * np.sqrt(1 - right**2), -away * right, rng.uniform(0, 2, clutter)], axis=-1
        )
        at_rest = np.broadcast_to(place, (len(points), *place.shape))
        points = np.concatenate([points, at_rest], axis=1)
        rcs = np.concatenate([rcs, rng.uniform(0.1, 1.0, clutter)])
    maps = observe(radar, points, act.rate, rcs, count, rng)
    return {view: m.astype(np.float16) for view, m in maps.items()}


def _fingerprint(path: Path) -> str:
    """Name and content of the file, so that another one of that name is told apart."""
    return f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _begin(out: Path, arguments: dict) -> bool:
    """Prepares the folder; True where it holds this very simulation, complete."""
    note = out / UNFINISHED
    if (out / "dataset.json").exists():
        if read_head(out).get("simulated") == arguments:
            note.unlink(missing_ok=True)
            return True
        raise DataError(f"{out}: holds another dataset; remove it or choose another folder")
    if note.exists():
        try:
            begun = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{note}: cannot be read: {error}; remove the folder") from error
        if begun != arguments:
            raise DataError(
                f"{out}: holds an unfinished simulation with other arguments, {begun}; "
                "give the same, or remove it, or choose another folder"
            )
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is not an empty folder; remove it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(arguments, indent=2))
    return False


def _written(path: Path, counts: list[int], views: Mapping[str, int]):
    """The maps of each clip in a file that an earlier run left whole, else None."""
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


def _assign(clips: int, shares: Mapping[str, float]) -> list[str]:
    """Split of each clip, in the order of `SPLITS`, every share rounded at its far end."""
    ends = np.round(np.cumsum([shares.get(split, 0.0) for split in SPLITS]) * clips).astype(int)
    return [SPLITS[int(np.searchsorted(ends, i, side="right"))] for i in range(clips)]


def _tell(
    id: str,
    act: motions.Performance,
    rng: np.random.Generator,
    frame_rate: float,
    count: int,
    split: str,
    label: str | None,
) -> Clip:
    """The clip but for its maps."""
    caption, permuted = tell_in_order(act.phrases, rng)
    spans = tuple(
        (int(start * frame_rate), min(count, round(stop * frame_rate))) for start, stop in act.spans
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
