"""Datasets of radar maps with captions, in memory and on disk.

A dataset on disk is a folder

    dataset.json      {"format": "clipseq maps", "version": 1,
                       "views": {"range_time": 64, ...},         bins F of each view
                       "frame_rate": 16.0,                       frames a second, optional
                       "class_captions": {"wave": "a person waves", ...}}            optional
    clips.jsonl       one JSON object a line:
                       {"id": "a7", "file": "maps/00000.npz",
                        "caption": "a person sits, then waves"}
                      and, all of them optional:
                       "start": 0, "frames": 160    the clip's place in its file, else all of it
                       "split": "train"             train, val, test or zeroshot
                       "actions": ["sit", "wave"], "spans": [[0, 70], [70, 160]]
                       "permuted": ["a person waves, then sits"]
                       "sources": ["recording 12"], "label": "wave"
    maps/00000.npz    per view one float array (F, T); several clips may lie in a row along T

or, for a small one, a single .npz

    <view>            one array (N, F, T) for each view: every array of three axes is a view
    captions          N strings
    lengths           N frame counts, optional; later frames are padding
    ids, splits, sources, labels      N strings each, optional ("" for none)
    class_names, class_captions       K strings each, optional
    frame_rate        optional
                      strings are of NumPy's dtype U, or S in UTF-8

No pickle anywhere. Maps should be standardised to about zero mean and unit scale per view by a
rule that is fixed before the data is seen. A dataset is checked whole when it is opened, so that
a missing or corrupt file is an error at once and not hours into a training.
"""

import json
import operator
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from torch.utils.data import Dataset

from clipseq.data.clip import SPLITS, Clip
from clipseq.errors import DataError, nearest

FORMAT, VERSION = "clipseq maps", 1
CLIPS_PER_FILE = 64
UNFINISHED = "unfinished.json"


class MapDataset(Dataset[Clip]):
    """Radar clips with captions: `MapDataset(path)` reads a folder or an .npz (see this module).

    ``dataset[i]`` is a `Clip`, its maps float32 and its own: what is done to them in place leaves
    the dataset as it is. All maps are held in memory, as they are on disk (float16 costs two bytes
    a cell).

    Args:
        path: the folder or the file.

    Attributes:
        views: bins of each view.
        frame_rate: frames a second, None if unknown.
        class_captions: caption of each class that a clip's `label` may name.

    Raises:
        DataError: naming the file and the clip, for anything missing, corrupt or inconsistent.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if path.is_dir():
            self._set(*_read_folder(path), where=str(path))
        elif path.is_file():
            self._set(*_read_single(path), where=str(path))
        else:
            raise DataError(f"{path}: no such dataset; wanted a folder with dataset.json or a .npz")

    @classmethod
    def from_clips(
        cls,
        clips: Iterable[Clip],
        *,
        frame_rate: float | None = None,
        class_captions: Mapping[str, str] | None = None,
    ) -> "MapDataset":
        """A dataset of clips in memory, checked like one that is read."""
        dataset = cls.__new__(cls)
        dataset._set(tuple(clips), frame_rate, dict(class_captions or {}), where="clips")
        return dataset

    def _set(
        self,
        clips: tuple[Clip, ...],
        frame_rate: float | None,
        class_captions: dict[str, str],
        where: str,
    ) -> None:
        check_clips(clips, class_captions, where)
        self._clips = clips
        self.frame_rate = frame_rate
        self.class_captions = class_captions
        self.views = {view: m.shape[0] for view, m in clips[0].radar.items()}

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Clip:
        try:
            clip = self._clips[operator.index(index)]
        except TypeError:
            raise TypeError(
                f"dataset[i] takes one whole number, got {index!r}; several clips: "
                "dataset.subset('train') for those of a split, [dataset[i] for i in ...] for others"
            ) from None
        # Copied also where it is float32 already: torch warns of an array that is read-only.
        return attrs.evolve(
            clip, radar={view: np.array(m, np.float32) for view, m in clip.radar.items()}
        )

    def __repr__(self) -> str:
        return f"MapDataset({len(self)} clips, views={self.views}, splits={self.splits})"

    @property
    def splits(self) -> dict[str, int]:
        """Number of clips of each split that has any."""
        count = {split: sum(clip.split == split for clip in self._clips) for split in SPLITS}
        return {split: n for split, n in count.items() if n}

    @property
    def captions(self) -> list[str]:
        """The caption of every clip."""
        return [clip.caption for clip in self._clips]

    @property
    def permuted(self) -> list[tuple[str, ...]]:
        """The permuted captions of every clip."""
        return [clip.permuted for clip in self._clips]

    def subset(self, split: str) -> "MapDataset":
        """The clips of one split; DataError where it has none."""
        if split not in self.splits:
            raise DataError(
                f"no clips in split {split!r}{nearest(split, self.splits)}; "
                f"this dataset has {self.splits}"
            )
        subset = type(self).__new__(type(self))
        subset._clips = tuple(clip for clip in self._clips if clip.split == split)
        subset.frame_rate = self.frame_rate
        subset.class_captions = self.class_captions
        subset.views = self.views
        return subset


def check_clips(clips: Sequence[Clip], class_captions: Mapping[str, str], where: str) -> None:
    """Raises DataError where clips do not make a dataset; `where` opens its message."""
    if not clips:
        raise DataError(f"{where}: no clips")
    views = {view: np.shape(m)[:1] for view, m in clips[0].radar.items()}
    if not views:
        raise DataError(f"{where}: clip {clips[0].id!r} has no map")
    for name, caption in class_captions.items():
        _check_caption(caption, f"{where}: the caption of class {name!r}")
    seen: set[str] = set()
    owners: dict[str, tuple[str, str]] = {}
    for clip in clips:
        at = f"{where}: clip {clip.id!r}"
        if clip.id in seen:
            raise DataError(f"{at}: the id is used twice; ids must differ")
        seen.add(clip.id)
        _check_maps(clip, views, clips[0].id, at)
        _check_caption(clip.caption, f"{at}: the caption")
        for caption in clip.permuted:
            _check_caption(caption, f"{at}: a permuted caption")
        if clip.split not in SPLITS:
            raise DataError(
                f"{at}: no split {clip.split!r}{nearest(clip.split, SPLITS)}; "
                f"splits are {', '.join(SPLITS)}"
            )
        if clip.spans and len(clip.spans) != len(clip.actions):
            raise DataError(f"{at}: {len(clip.spans)} spans for {len(clip.actions)} actions")
        for start, stop in clip.spans:
            if not 0 <= start < stop <= clip.frames:
                raise DataError(f"{at}: span {(start, stop)} is not in its {clip.frames} frames")
        if clip.caption in clip.permuted:
            raise DataError(f"{at}: a permuted caption equals the caption {clip.caption!r}")
        if clip.label is not None and clip.label not in class_captions:
            raise DataError(
                f"{at}: label {clip.label!r} has no class caption"
                f"{nearest(clip.label, class_captions)}"
            )
        # one-action clips may be cut from what the test clips were made of, from nothing else
        group = "test" if clip.split == "zeroshot" else clip.split
        for source in clip.sources:
            other, owner = owners.setdefault(source, (group, clip.id))
            if other != group:
                raise DataError(
                    f"{at} ({clip.split}): its source {source!r} is also that of clip {owner!r} "
                    f"({other}); a source must not lie in two splits"
                )


def _check_caption(caption: Any, what: str) -> None:
    if not isinstance(caption, str):
        raise DataError(f"{what} must be a string, got {caption!r}")
    if not caption.strip():
        raise DataError(f"{what} is empty")


def _check_maps(clip: Clip, views: Mapping[str, tuple[int, ...]], first: str, at: str) -> None:
    if clip.radar.keys() != views.keys():
        raise DataError(f"{at}: has views {sorted(clip.radar)}, clip {first!r} {sorted(views)}")
    for view, values in clip.radar.items():
        if values.ndim != 2 or values.dtype.kind != "f":
            raise DataError(
                f"{at}: view {view!r} must be a float array (F, T), "
                f"got {values.dtype} {values.shape}"
            )
        if values.shape[:1] != views[view]:
            raise DataError(
                f"{at}: view {view!r} has {values.shape[0]} bins, clip {first!r} {views[view][0]}"
            )
        if values.shape[1] != clip.frames or not clip.frames:
            raise DataError(
                f"{at}: view {view!r} has {values.shape[1]} frames, its first view "
                f"{clip.frames}; wanted the same number, at least 1"
            )
        if not np.isfinite(values).all():
            frame = int(np.flatnonzero(~np.isfinite(values).all(axis=0))[0])
            raise DataError(f"{at}: view {view!r} holds NaN or infinity, first in frame {frame}")


# writing


def write_dataset(
    path: str | os.PathLike[str],
    clips: Iterable[Clip],
    *,
    frame_rate: float | None = None,
    class_captions: Mapping[str, str] | None = None,
) -> Path:
    """Writes clips as a dataset folder, all or nothing, and returns its path.

    Maps keep their float type: float16 halves the space and is enough for standardised maps.
    Raises DataError where `path` exists already or the clips do not make a dataset.
    """
    path = Path(path)
    clips = tuple(clips)
    check_clips(clips, class_captions or {}, "clips")
    if path.exists():
        raise DataError(f"{path}: exists already; remove it or choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for start in range(0, len(clips), CLIPS_PER_FILE):
            write_maps(partial, start, clips[start : start + CLIPS_PER_FILE])
        write_index(partial, clips, frame_rate, class_captions or {})
        partial.chmod(0o755)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return path


def maps_file(start: int) -> str:
    """Name of the file that holds the clips from number `start` on."""
    return f"maps/{start // CLIPS_PER_FILE:05d}.npz"


def write_maps(folder: Path, start: int, clips: Sequence[Clip]) -> None:
    """Writes the file of up to `CLIPS_PER_FILE` clips from number `start` on, all or nothing."""
    target = folder / maps_file(start)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    # np.savez takes no view that is named as one of its own parameters, such as "file"
    with zipfile.ZipFile(partial, "w") as archive:
        for view in clips[0].radar:
            joined = np.concatenate([clip.radar[view] for clip in clips], axis=1)
            with archive.open(f"{view}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, joined, allow_pickle=False)
    os.replace(partial, target)


def write_index(
    folder: Path,
    clips: Sequence[Clip],
    frame_rate: float | None,
    class_captions: Mapping[str, str],
    **made_by: Any,
) -> None:
    """Writes clips.jsonl, then dataset.json, which makes the folder a dataset."""
    views = {view: m.shape[0] for view, m in clips[0].radar.items()}
    start = 0
    lines = []
    for number, clip in enumerate(clips):
        if number % CLIPS_PER_FILE == 0:
            start = 0
        record = attrs.asdict(clip, filter=lambda field, value: field.name != "radar")
        record = {
            "id": record.pop("id"),
            "file": maps_file(number),
            "start": start,
            "frames": clip.frames,
        } | {key: value for key, value in record.items() if value not in (None, ())}
        lines.append(json.dumps(record, ensure_ascii=False))
        start += clip.frames
    write_text(folder / "clips.jsonl", "\n".join(lines) + "\n")
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "views": views}
    if frame_rate is not None:
        head["frame_rate"] = frame_rate
    if class_captions:
        head["class_captions"] = dict(class_captions)
    write_text(folder / "dataset.json", json.dumps(head | made_by, indent=2, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# reading

_Read = tuple[tuple[Clip, ...], float | None, dict[str, str]]


def _read_folder(folder: Path) -> _Read:
    head = read_head(folder)
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        raise DataError(
            f"{folder / 'dataset.json'}: wanted format {FORMAT!r} version {VERSION}, "
            f"got {head.get('format')!r} version {head.get('version')!r}"
        )
    views = _mapping(head, "views", int, folder / "dataset.json")
    captions = _mapping(head, "class_captions", str, folder / "dataset.json")
    frame_rate = head.get("frame_rate")
    if frame_rate is not None and not isinstance(frame_rate, int | float):
        raise DataError(f"{folder / 'dataset.json'}: frame_rate {frame_rate!r} is not a number")
    index = folder / "clips.jsonl"
    try:
        # not splitlines, which also splits where a caption holds U+2028
        lines = index.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{index}: cannot be read: {error}") from error
    files: dict[str, dict[str, np.ndarray]] = {}
    clips = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at = f"{index}, line {number}"
        record = _record(line, at)
        name = record.pop("file")
        if name not in files:
            files[name] = _load_maps(folder / name, views)
        start, frames = record.pop("start", 0), record.pop("frames", None)
        total = next(iter(files[name].values())).shape[1]
        stop = total if frames is None else start + frames
        if not 0 <= start < stop <= total:
            raise DataError(f"{at}: frames {start} to {stop} are not in {name}, which has {total}")
        clips.append(Clip(radar={v: m[:, start:stop] for v, m in files[name].items()}, **record))
    return tuple(clips), frame_rate, captions


def read_head(folder: Path) -> dict[str, Any]:
    """dataset.json as it stands; DataError where it is absent or no JSON object."""
    path = folder / "dataset.json"
    if not path.exists() and (folder / UNFINISHED).exists():
        raise DataError(
            f"{folder}: an unfinished simulation; "
            "simulate with the same arguments again and it will be completed"
        )
    try:
        head = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_key_once)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; a dataset folder holds it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(head, dict):
        raise DataError(f"{path}: wanted a JSON object, got {type(head).__name__}")
    return head


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of them, and says nothing
    if (twice := _first_twice([key for key, _ in pairs])) is not None:
        raise ValueError(f"the key {twice!r} is given twice")
    return dict(pairs)


def _first_twice(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _mapping(head: Mapping[str, Any], key: str, kind: type, path: Path) -> dict[str, Any]:
    value = head.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
        raise DataError(f"{path}: {key!r} must map names to {kind.__name__}, got {value!r}")
    return value


_FIELDS: dict[str, type] = {
    "id": str, "file": str, "caption": str, "start": int, "frames": int, "split": str,
    "actions": list, "spans": list, "permuted": list, "sources": list, "label": str,
}  # fmt: skip


def _record(line: str, at: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(line, object_pairs_hook=_each_key_once)
    except ValueError as error:
        raise DataError(f"{at}: no JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{at}: wanted a JSON object, got {type(record).__name__}")
    for key in ("id", "file", "caption"):
        if key not in record:
            raise DataError(f"{at}: {key!r} is missing")
    for key, value in record.items():
        if key not in _FIELDS:
            raise DataError(f"{at}: unknown key {key!r}{nearest(key, _FIELDS)}")
        kind: Any = _FIELDS[key]
        if type(value) is not kind:
            raise DataError(f"{at}: {key!r} must be {kind.__name__}, got {value!r}")
        if key == "spans":
            if not all(type(s) is list and [type(n) for n in s] == [int, int] for s in value):
                raise DataError(f"{at}: 'spans' must be [[start, stop], ...], got {value!r}")
            record[key] = tuple((start, stop) for start, stop in value)
        elif kind is list:
            if not all(type(v) is str for v in value):
                raise DataError(f"{at}: {key!r} must be a list of strings, got {value!r}")
            record[key] = tuple(value)
    return record


_CORRUPT = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz; DataError that names the file where that fails."""
    try:
        # np.load would take anything else for a pickle
        if not zipfile.is_zipfile(path):
            raise ValueError("not an .npz archive" if path.exists() else "no such file")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _CORRUPT as error:
        raise DataError(f"{path}: missing or corrupt: {error}") from error


def _load_maps(path: Path, views: Mapping[str, int]) -> dict[str, np.ndarray]:
    arrays = load_arrays(path)
    if not views or arrays.keys() != views.keys():
        raise DataError(f"{path}: has views {sorted(arrays)}, dataset.json {sorted(views)}")
    for view, values in arrays.items():
        if values.ndim != 2 or values.shape[0] != views[view]:
            raise DataError(
                f"{path}: view {view!r} must be (F={views[view]}, T) after dataset.json, "
                f"got {values.shape}"
            )
    if len({values.shape[1] for values in arrays.values()}) > 1:
        raise DataError(
            f"{path}: views differ in frames: { {v: m.shape[1] for v, m in arrays.items()} }"
        )
    return arrays


_COLUMNS = ("captions", "lengths", "ids", "splits", "sources", "labels")
_OTHERS = ("class_names", "class_captions", "frame_rate")
_STRINGS = ("captions", "ids", "splits", "sources", "labels", "class_names", "class_captions")


def _read_single(path: Path) -> _Read:
    arrays = load_arrays(path)
    views = {name: values for name, values in arrays.items() if values.ndim == 3}
    if not views or "captions" not in arrays:
        raise DataError(
            f"{path}: wanted views (N, F, T) and N captions, got "
            f"{ {name: values.shape for name, values in arrays.items()} }"
        )
    count, _, total = next(iter(views.values())).shape
    for name, values in arrays.items():
        if name in views:
            wanted: tuple[int, ...] = (count, values.shape[1], total)
        elif name in _COLUMNS:
            wanted = (count,)
        elif name in _OTHERS:
            continue
        else:
            raise DataError(
                f"{path}: unknown array {name!r} {values.shape}{nearest(name, _COLUMNS + _OTHERS)}"
            )
        if values.shape != wanted:
            raise DataError(f"{path}: {name!r} must be {wanted}, got {values.shape}")
    for name in _STRINGS:
        if name in arrays:
            arrays[name] = _strings(arrays[name], f"{path}: {name!r}")

    def column(name: str, default: Sequence[Any]) -> list[Any]:
        return arrays[name].tolist() if name in arrays else list(default)

    lengths = column("lengths", [total] * count)
    ids = column("ids", [f"{number:05d}" for number in range(count)])
    splits = column("splits", ["train"] * count)
    sources, labels = column("sources", [""] * count), column("labels", [""] * count)
    clips = []
    for i, caption in enumerate(column("captions", ())):
        if type(lengths[i]) is not int or not 1 <= lengths[i] <= total:
            raise DataError(f"{path}: lengths[{i}] is {lengths[i]!r}, wanted 1 to {total}")
        clips.append(
            Clip(
                id=ids[i],
                radar={view: values[i, :, : lengths[i]] for view, values in views.items()},
                caption=caption,
                split=splits[i],
                sources=(sources[i],) if sources[i] else (),
                label=labels[i] or None,
            )
        )
    names, told = column("class_names", ()), column("class_captions", ())
    if len(names) != len(told):
        raise DataError(f"{path}: {len(names)} class_names for {len(told)} class_captions")
    if (twice := _first_twice(names)) is not None:
        raise DataError(f"{path}: class_names has {twice!r} twice; a class has one caption")
    rate = arrays.get("frame_rate")
    if rate is not None and (rate.size != 1 or rate.dtype.kind not in "iuf"):
        raise DataError(f"{path}: frame_rate must be one number, got {rate.tolist()!r}")
    frame_rate = None if rate is None else float(rate.item())
    return tuple(clips), frame_rate, dict(zip(names, told, strict=True))


def _strings(values: np.ndarray, at: str) -> np.ndarray:
    """An array of strings, decoded if need be; what is none is not written out as one."""
    if values.ndim != 1:
        raise DataError(f"{at} must have one axis, got {values.shape}")
    if values.dtype.kind == "S":
        try:
            return np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{at} holds bytes that are not UTF-8: {error}") from error
    if values.dtype.kind != "U" and values.size:  # an empty list is saved as numbers
        raise DataError(
            f"{at} must hold strings (dtype U, or S in UTF-8), got {values.dtype}, "
            f"the first {values.tolist()[0]!r}; numbers become strings by .astype(str)"
        )
    return values
