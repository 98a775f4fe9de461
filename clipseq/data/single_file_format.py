"""Single-file format: a small data set as one .npz.

    <view>            one array (N, F, T) per view: every array with three axes is a view
    captions          N strings
    lengths           N numbers of frames, optional; later frames are padding
    ids, splits, sources, labels      N strings each, optional ("" for none)
    class_names, class_captions       K strings each, optional
    modality          one string, optional, "radar" if absent
    frame_rate        frames per second, optional

With a second signal there are also

    paired/<view>     one array (N, F, T) per view of the second signal
    paired_modality   one string
    paired_lengths    N numbers of frames, optional
    paired_frame_rate optional
    captions          optional

Strings are of NumPy's dtype U, or S in UTF-8. The file is read without pickle.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipseq.data.arrays import load_arrays
from clipseq.data.clip import Clip, Maps
from clipseq.data.header import Header
from clipseq.errors import DataError, suggest

PAIRED = "paired/"
"""Prefix of the views of the second signal."""

_COLUMNS = ("captions", "lengths", "paired_lengths", "ids", "splits", "sources", "labels")
_PER_CLASS = ("class_names", "class_captions")
_SINGLE = ("modality", "frame_rate", "paired_modality", "paired_frame_rate")
_STRINGS = ("captions", "ids", "splits", "sources", "labels", *_PER_CLASS)


def read_single_file(path: Path) -> tuple[tuple[Clip, ...], Header]:
    """Return the clips of a single .npz, still unchecked, and its header.

    Raises:
        DataError: the file is missing, corrupt or of another format.
    """
    arrays = load_arrays(path)
    maps = {name: values for name, values in arrays.items() if values.ndim == 3}
    rest = {name: values for name, values in arrays.items() if values.ndim != 3}
    views = {name: values for name, values in maps.items() if not name.startswith(PAIRED)}
    paired = {
        name.removeprefix(PAIRED): values
        for name, values in maps.items()
        if name.startswith(PAIRED)
    }
    if not views or ("captions" not in rest and not paired):
        raise DataError(
            f"{path} must hold views (N, F, T) and N captions, got "
            f"{ {name: values.shape for name, values in arrays.items()} }"
        )
    count = len(next(iter(views.values())))
    _check_views(views, count, "", path)
    _check_views(paired, count, PAIRED, path)
    for name, values in rest.items():
        if name in _COLUMNS:
            if values.shape != (count,):
                raise DataError(f"{path}: {name!r} must be {(count,)}, got {values.shape}")
        elif name not in _PER_CLASS + _SINGLE:
            raise DataError(
                f"{path}: an array must be a view (N, F, T) or have a known name, got {name!r} "
                f"{values.shape}{suggest(name, _COLUMNS + _PER_CLASS + _SINGLE)}"
            )
    for name in _STRINGS:
        if name in rest:
            rest[name] = _strings(rest[name], f"{path}: {name!r}")

    def column(name: str, default: Sequence[Any]) -> list[Any]:
        return rest[name].tolist() if name in rest else list(default)

    lengths = _lengths(rest, "lengths", views, path)
    paired_lengths = _lengths(rest, "paired_lengths", paired, path)
    captions = column("captions", [""] * count)
    ids = column("ids", [f"{number:05d}" for number in range(count)])
    splits = column("splits", ["train"] * count)
    sources, labels = column("sources", [""] * count), column("labels", [""] * count)
    clips = tuple(
        Clip(
            id=ids[i],
            signal=_cut(views, i, lengths),
            paired=_cut(paired, i, paired_lengths),
            caption=captions[i],
            split=splits[i],
            sources=(sources[i],) if sources[i] else (),
            label=labels[i] or None,
        )
        for i in range(count)
    )
    modality = _string(rest, "modality", path)
    header = Header(
        modality="radar" if modality is None else modality,
        frame_rate=_number(rest, "frame_rate", path),
        paired_modality=_string(rest, "paired_modality", path),
        paired_frame_rate=_number(rest, "paired_frame_rate", path),
        class_captions=_class_captions(
            column("class_names", ()), column("class_captions", ()), path
        ),
    )
    return clips, header


def _check_views(views: Mapping[str, np.ndarray], count: int, prefix: str, path: Path) -> None:
    if not views:
        return
    total = next(iter(views.values())).shape[2]
    for view, values in views.items():
        wanted = (count, values.shape[1], total)
        if values.shape != wanted:
            raise DataError(f"{path}: {prefix + view!r} must be {wanted}, got {values.shape}")


def _lengths(
    arrays: Mapping[str, np.ndarray], name: str, views: Mapping[str, np.ndarray], path: Path
) -> list[int]:
    """Return the number of frames of each clip, by default all frames of its views."""
    if not views:
        if name in arrays:
            raise DataError(
                f"{path}: {name!r} must be absent without a second signal, got "
                f"{arrays[name].tolist()}; add its views as {PAIRED + '<view>'!r}"
            )
        return []
    count, _, total = next(iter(views.values())).shape
    lengths: list[int] = arrays[name].tolist() if name in arrays else [total] * count
    for i, length in enumerate(lengths):
        if type(length) is not int or not 1 <= length <= total:
            raise DataError(f"{path}: {name}[{i}] must be 1 to {total}, got {length!r}")
    return lengths


def _cut(views: Mapping[str, np.ndarray], i: int, lengths: Sequence[int]) -> Maps:
    return {view: values[i, :, : lengths[i]] for view, values in views.items()}


def _class_captions(names: list[str], captions: list[str], path: Path) -> dict[str, str]:
    if len(names) != len(captions):
        raise DataError(
            f"{path}: class_captions must be one per class name, "
            f"got {len(captions)} class_captions for {len(names)} class_names"
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: class_names must be unique, got {twice[0]!r} twice")
    return dict(zip(names, captions, strict=True))


def _number(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> float | None:
    if name not in arrays:
        return None
    values = arrays[name]
    if values.size != 1 or values.dtype.kind not in "iuf":
        raise DataError(f"{path}: {name} must be one number, got {values.tolist()!r}")
    return float(values.item())


def _string(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> str | None:
    if name not in arrays:
        return None
    values = arrays[name]
    if values.size != 1:
        raise DataError(f"{path}: {name} must be one string, got {values.tolist()!r}")
    return str(_strings(values.reshape(1), f"{path}: {name!r}")[0])


def _strings(values: np.ndarray, at: str) -> np.ndarray:
    """Return an array of strings, decoded from UTF-8 if necessary; numbers are an error."""
    if values.ndim != 1:
        raise DataError(f"{at} must have one axis, got {values.shape}")
    if values.dtype.kind == "S":
        try:
            return np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{at} must hold UTF-8, got bytes that are not UTF-8: {error}"
            ) from error
    if values.dtype.kind != "U" and values.size:  # an empty list is saved as numbers
        raise DataError(
            f"{at} must hold strings (dtype U, or S in UTF-8), got {values.dtype}, "
            f"the first {values.tolist()[0]!r}; turn numbers into strings with .astype(str)"
        )
    return values
