"""Folder format: a data set as a folder of two text files and archives of maps.

    dataset.json      {"format": "clipseq maps", "version": 1,
                       "modality": "radar",                      optional, "radar" if absent
                       "views": {"range_time": 64, ...},         number of bins F of each view
                       "frame_rate": 16.0,                       frames per second, optional
                       "axes": {"range_time": {"label": "range", "unit": "m",        optional
                                               "first": 0.0, "last": 9.45}, ...},    (see `Axis`)
                       "class_captions": {"wave": "a person waves", ...},            optional
                       "paired": {"modality": "motion", "views": {"joints": 66},
                                  "frame_rate": 30.0}}           the second signal, optional
    clips.jsonl       one JSON object per line:
                       {"id": "a7", "file": "maps/00000.npz",
                        "caption": "a person sits, then waves"}
                      and the optional keys
                       "start": 0, "frames": 160    its frames in the file, by default all
                       "split": "train"             train, val, test or zeroshot
                       "actions": ["sit", "wave"], "spans": [[0, 70], [70, 160]]
                       "permuted": ["a person waves, then sits"]
                       "sources": ["recording 12"], "label": "wave"
                      With a second signal each clip also has
                       "paired": {"file": "paired/00000.npz"}      and "start", "frames" as above
                      and "caption" is optional.
    maps/00000.npz    one float array (F, T) per view; several clips may lie side by side along T
    paired/00000.npz  the same for the second signal

No file is read with pickle. Standardise the maps to about zero mean and unit scale per view, by a
rule that does not depend on the data.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from clipseq.config import structure
from clipseq.data.arrays import check_rate, inside, load_arrays, parse_json, read_text
from clipseq.data.checks import check_clips
from clipseq.data.clip import Clip, Maps, frame_count
from clipseq.data.header import Axis, Header
from clipseq.engine.files import replacing, write_text
from clipseq.engine.options import check_kind, to_path
from clipseq.errors import ConfigError, DataError, suggest

FORMAT, VERSION = "clipseq maps", 1

CLIPS_PER_FILE = 64
"""Number of clips in each file of maps that `write_dataset` writes."""

UNFINISHED = "unfinished.json"
"""Name of the file that marks a simulation as unfinished."""


def write_dataset(
    path: str | os.PathLike[str],
    clips: Iterable[Clip],
    *,
    modality: str = "radar",
    paired_modality: str | None = None,
    frame_rate: float | None = None,
    paired_frame_rate: float | None = None,
    axes: Mapping[str, Axis] | None = None,
    paired_axes: Mapping[str, Axis] | None = None,
    class_captions: Mapping[str, str] | None = None,
) -> Path:
    """Write clips as a data set folder and return its path; after an error, no folder is left.

    Maps keep their float type: float16 takes half the space and is enough for standardised maps.

    Args:
        path: the folder, which must not exist yet.
        clips: the clips.
        modality: name of the signal, `Clip.signal`.
        paired_modality: name of the second signal, `Clip.paired`; None without one.
        frame_rate: frames per second of the signal.
        paired_frame_rate: frames per second of the second signal.
        axes: the `Axis` of each view of the signal for which it is known.
        paired_axes: the same for the second signal.
        class_captions: caption of each class that a clip's `label` may name.

    Raises:
        DataError: `path` exists, or the clips do not form a valid data set.
        TypeError, ValueError: `path` is not a path, or `clips` is not an iterable.
    """
    path = to_path("path", path)
    check_kind("clips", clips, Iterable, "an iterable of clips")
    clips = tuple(clips)
    header = Header(
        modality=modality,
        frame_rate=frame_rate,
        paired_modality=paired_modality,
        paired_frame_rate=paired_frame_rate,
        axes=dict(axes or {}),
        paired_axes=dict(paired_axes or {}),
        class_captions=dict(class_captions or {}),
    )
    check_clips(clips, header, "clips")
    if path.exists():
        raise DataError(
            f"path must not exist yet, got {path}, which exists already; "
            "remove it or choose another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for start in range(0, len(clips), CLIPS_PER_FILE):
            write_maps(partial, start, clips[start : start + CLIPS_PER_FILE])
        write_index(partial, clips, header)
        partial.chmod(0o755)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return path


def maps_file(number: int, folder: str = "maps") -> str:
    """Return the name of the file that holds clip `number`, relative to the data set."""
    return f"{folder}/{number // CLIPS_PER_FILE:05d}.npz"


def write_maps(folder: Path, start: int, clips: Sequence[Clip]) -> None:
    """Write the maps of up to `CLIPS_PER_FILE` clips from number `start` on; files are atomic."""
    _write_archive(folder / maps_file(start), [clip.signal for clip in clips])
    if clips[0].paired:
        _write_archive(folder / maps_file(start, "paired"), [clip.paired for clip in clips])


def _write_archive(target: Path, signals: Sequence[Maps]) -> None:
    # np.savez rejects a view named like one of its own parameters, such as "file".
    with replacing(target) as partial, zipfile.ZipFile(partial, "w") as archive:
        for view in signals[0]:
            joined = np.concatenate([maps[view] for maps in signals], axis=1)
            with archive.open(f"{view}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, joined, allow_pickle=False)


def write_index(folder: Path, clips: Sequence[Clip], header: Header, **made_by: Any) -> None:
    """Write clips.jsonl, then dataset.json, which makes the folder a data set.

    The arguments in `made_by` become further keys of dataset.json.
    """
    start = paired_start = 0
    lines = []
    for number, clip in enumerate(clips):
        if number % CLIPS_PER_FILE == 0:
            start = paired_start = 0
        fields = attrs.asdict(
            clip, filter=lambda field, value: field.name not in ("id", "signal", "paired", "header")
        )
        record = {
            "id": clip.id,
            "file": maps_file(number),
            "start": start,
            "frames": clip.frames,
        }
        start += clip.frames
        if clip.paired:
            count = frame_count(clip.paired)
            record["paired"] = {
                "file": maps_file(number, "paired"),
                "start": paired_start,
                "frames": count,
            }
            paired_start += count
        record |= {key: value for key, value in fields.items() if value not in (None, (), "")}
        lines.append(json.dumps(record, ensure_ascii=False))
    write_text(folder / "clips.jsonl", "\n".join(lines) + "\n")

    head: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    head |= _signal_head(header.modality, clips[0].signal, header.frame_rate, header.axes)
    if header.class_captions:
        head["class_captions"] = header.class_captions
    if header.paired_modality is not None:
        head["paired"] = _signal_head(
            header.paired_modality, clips[0].paired, header.paired_frame_rate, header.paired_axes
        )
    write_text(folder / "dataset.json", json.dumps(head | made_by, indent=2, ensure_ascii=False))


def _signal_head(
    modality: str, maps: Maps, frame_rate: float | None, axes: Mapping[str, Axis]
) -> dict[str, Any]:
    head: dict[str, Any] = {
        "modality": modality,
        "views": {view: m.shape[0] for view, m in maps.items()},
    }
    if frame_rate is not None:
        head["frame_rate"] = frame_rate
    if axes:
        head["axes"] = {view: attrs.asdict(axis) for view, axis in axes.items()}
    return head


def read_folder(folder: Path) -> tuple[tuple[Clip, ...], Header]:
    """Return the clips of a data set folder, still unchecked, and its header.

    Raises:
        DataError: a file is missing, corrupt or of another format; the error names it.
    """
    at = folder / "dataset.json"
    head = read_head(folder)
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        raise DataError(
            f"{at}: format must be {FORMAT!r} version {VERSION}, "
            f"got {head.get('format')!r} version {head.get('version')!r}"
        )
    _check_keys(head, _HEAD_KEYS, str(at))
    signal = _read_signal({"modality": "radar"} | head, str(at))
    paired = None
    if "paired" in head:
        if not isinstance(head["paired"], dict):
            raise DataError(f"{at}: 'paired' must be a JSON object, got {head['paired']!r}")
        _check_keys(head["paired"], _SIGNAL_KEYS, f"{at}: 'paired'")
        paired = _read_signal(head["paired"], f"{at}: 'paired'")
    header = Header(
        modality=signal.modality,
        frame_rate=signal.frame_rate,
        paired_modality=None if paired is None else paired.modality,
        paired_frame_rate=None if paired is None else paired.frame_rate,
        axes=signal.axes,
        paired_axes={} if paired is None else paired.axes,
        class_captions=_mapping(head, "class_captions", str, str(at)),
    )
    index = folder / "clips.jsonl"
    try:
        # Not splitlines, which also splits where a caption holds U+2028.
        lines = read_text(index).split("\n")
    except OSError as error:
        raise DataError(f"{index} cannot be read: {error}") from error
    clips = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at_line = f"{index}, line {number}"
        record = _record(line, at_line, paired=paired is not None)
        place = {key: record.pop(key) for key in _PLACE if key in record}
        record["signal"] = _read_maps(folder, place, signal, at_line)
        if paired is not None:
            record["paired"] = _read_maps(folder, record["paired"], paired, at_line)
        clips.append(Clip(**record))
    return tuple(clips), header


_SIGNAL_KEYS = ("modality", "views", "frame_rate", "axes")
_HEAD_KEYS = (
    "format", "version", *_SIGNAL_KEYS, "class_captions", "paired", "simulated", "about",
)  # fmt: skip


def _check_keys(head: Mapping[str, Any], known: Sequence[str], at: str) -> None:
    for key in head:
        if key not in known:
            raise DataError(
                f"{at}: a key must be one of {', '.join(known)}, got {key!r}{suggest(key, known)}; "
                "notes of your own belong under 'about'"
            )


def read_head(folder: Path) -> dict[str, Any]:
    """Return the content of dataset.json; raise DataError unless it is a JSON object."""
    path = folder / "dataset.json"
    if not path.exists() and (folder / UNFINISHED).exists():
        raise DataError(
            f"{folder} holds an unfinished simulation; "
            "complete it by simulating again with the same arguments"
        )
    try:
        head = parse_json(read_text(path))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; a data set folder must have it") from None
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(head, dict):
        raise DataError(f"{path} must be a JSON object, got {type(head).__name__}")
    return head


@attrs.frozen(eq=False)
class _Signal:
    """One signal as dataset.json describes it, and the files of its maps that have been read."""

    modality: str
    views: dict[str, int]
    frame_rate: float | None
    axes: dict[str, Axis]
    files: dict[str, Maps] = attrs.field(factory=dict)


def _read_signal(head: Mapping[str, Any], at: str) -> _Signal:
    modality, rate = head.get("modality"), head.get("frame_rate")
    if not isinstance(modality, str):
        raise DataError(f"{at}: modality must be a string, got {modality!r}")
    check_rate(rate, f"{at}: frame_rate")
    axes = {
        view: _axis(fields, f"{at}: axes of {view!r}")
        for view, fields in _mapping(head, "axes", dict, at).items()
    }
    return _Signal(modality, _mapping(head, "views", int, at), rate, axes)


def _axis(fields: dict[str, Any], at: str) -> Axis:
    try:
        return structure(Axis, fields)
    except ConfigError as error:
        raise DataError(f"{at}: {error}") from error


def _mapping(head: Mapping[str, Any], key: str, kind: type, at: str) -> dict[str, Any]:
    value = head.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
        raise DataError(f"{at}: {key!r} must map names to {kind.__name__}, got {value!r}")
    return value


_PLACE: dict[str, type] = {"file": str, "start": int, "frames": int}
_FIELDS: dict[str, type] = {
    "id": str, **_PLACE, "caption": str, "paired": dict, "split": str, "actions": list,
    "spans": list, "permuted": list, "sources": list, "label": str,
}  # fmt: skip


def _record(line: str, at: str, *, paired: bool) -> dict[str, Any]:
    """Parse one line of clips.jsonl and check its keys and types."""
    try:
        record: Any = parse_json(line)
    except ValueError as error:
        raise DataError(f"{at}: the line must be JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{at}: the line must be a JSON object, got {type(record).__name__}")
    _check_fields(record, _FIELDS, ("id", "file", "paired" if paired else "caption"), at)
    if not paired and "paired" in record:
        raise DataError(
            f"{at}: 'paired' must be absent unless dataset.json has 'paired', "
            f"got {record['paired']!r}"
        )
    if paired:
        _check_fields(record["paired"], _PLACE, ("file",), f"{at}: 'paired'")
    for key, value in record.items():
        if key == "spans":
            if not all(type(s) is list and [type(n) for n in s] == [int, int] for s in value):
                raise DataError(f"{at}: 'spans' must be [[start, stop], ...], got {value!r}")
            record[key] = tuple((start, stop) for start, stop in value)
        elif _FIELDS[key] is list:
            if not all(type(v) is str for v in value):
                raise DataError(f"{at}: {key!r} must be a list of strings, got {value!r}")
            record[key] = tuple(value)
    return record


def _check_fields(
    record: Mapping[str, Any], fields: Mapping[str, type], required: Sequence[str], at: str
) -> None:
    for key in required:
        if key not in record:
            raise DataError(f"{at}: {key!r} is missing; add it")
    for key, value in record.items():
        if key not in fields:
            raise DataError(
                f"{at}: a key must be one of {', '.join(fields)}, got {key!r}{suggest(key, fields)}"
            )
        kind: Any = fields[key]
        if type(value) is not kind:
            raise DataError(f"{at}: {key!r} must be {kind.__name__}, got {value!r}")


def _read_maps(folder: Path, place: Mapping[str, Any], signal: _Signal, at: str) -> Maps:
    """Return the maps of one clip, from its place in a file."""
    name, start, count = place["file"], place.get("start", 0), place.get("frames")
    if name not in signal.files:
        signal.files[name] = _load_maps(inside(folder, name, at), signal.views)
    maps = signal.files[name]
    total = frame_count(maps)
    stop = total if count is None else start + count
    if not 0 <= start < stop <= total:
        raise DataError(
            f"{at}: start and frames must lie in the {total} frames of {name}, "
            f"got frames {start} to {stop}"
        )
    return {view: values[:, start:stop] for view, values in maps.items()}


def _load_maps(path: Path, views: Mapping[str, int]) -> Maps:
    arrays = load_arrays(path)
    if not views or arrays.keys() != views.keys():
        raise DataError(
            f"{path} must have the views of dataset.json, {sorted(views)}, got {sorted(arrays)}"
        )
    for view, values in arrays.items():
        if values.ndim != 2 or values.shape[0] != views[view]:
            turned = values.ndim == 2 and values.shape[1] == views[view]
            raise DataError(
                f"{path}: view {view!r} must be (F={views[view]}, T), as dataset.json says, "
                f"got {values.shape}" + ("; it is (T, F), so transpose it" if turned else "")
            )
    counts = {view: values.shape[1] for view, values in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: all views must have the same number of frames, got {counts}")
    return arrays
