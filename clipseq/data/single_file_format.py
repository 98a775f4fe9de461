"""Single-file format: a small data set as one .npz.

    <view>            one array (N, F, T) per view: every array with three axes is a view, except
                      spans
    captions          N strings
    lengths           N numbers of frames, optional; later frames are padding
    ids, splits, sources, labels      N strings each, optional ("" for none)
    permuted          (N, P) strings, optional: the permuted captions, "" where there are fewer
    actions           (N, A) strings, optional: the actions, "" where there are fewer
    spans             (N, A, 2) whole numbers, optional: first frame of each action and the frame
                      after its last one; anything where there is no action
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

_TURN = "; the views seem to be (N, T, F), so transpose them with .transpose(0, 2, 1)"

_COLUMNS = ("captions", "lengths", "paired_lengths", "ids", "splits", "sources", "labels")
_TABLES = ("permuted", "actions", "spans")
_PER_CLASS = ("class_names", "class_captions")
_SINGLE = ("modality", "frame_rate", "paired_modality", "paired_frame_rate")
_STRINGS = ("captions", "ids", "splits", "sources", "labels", *_PER_CLASS)


def read_single_file(path: Path) -> tuple[tuple[Clip, ...], Header]:
    """Return the clips of a single .npz, still unchecked, and its header.

    Raises:
        DataError: the file is missing, corrupt or of another format.
    """
    arrays = load_arrays(path)
    maps = {name: values for name, values in arrays.items() if _is_view(name, values)}
    rest = {name: values for name, values in arrays.items() if name not in maps}
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
        elif name not in _PER_CLASS + _SINGLE + _TABLES:
            known = _COLUMNS + _TABLES + _PER_CLASS + _SINGLE
            raise DataError(
                f"{path}: an array must be a view (N, F, T) or have a known name, got {name!r} "
                f"{values.shape}{suggest(name, known)}"
            )
    for name in _STRINGS:
        if name in rest:
            rest[name] = _strings(rest[name], f"{path}: {name!r}")
    permuted, actions = (_texts(rest, name, count, path) for name in ("permuted", "actions"))
    spans = _spans(rest, actions, count, path)

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
            permuted=permuted[i],
            actions=actions[i],
            spans=spans[i],
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


def _is_view(name: str, values: np.ndarray) -> bool:
    return values.ndim == 3 and name != "spans"


def _texts(
    arrays: Mapping[str, np.ndarray], name: str, count: int, path: Path
) -> list[tuple[str, ...]]:
    """Return the strings of each clip in a table (N, A), without the empty ones at its end."""
    if name not in arrays:
        return [()] * count
    values = arrays[name]
    if values.ndim != 2 or len(values) != count:
        raise DataError(
            f"{path}: {name!r} must be ({count}, A), a row of strings for each clip, '' where it "
            f"has fewer, got {values.shape}"
        )
    table = _strings(values.ravel(), f"{path}: {name!r}").reshape(values.shape)
    rows = []
    for i, row in enumerate(table.tolist()):
        texts = tuple(text for text in row if text)
        if list(texts) != row[: len(texts)]:
            raise DataError(
                f"{path}: {name}[{i}] must have '' at its end only, got {row}; move the others to "
                "its start"
            )
        rows.append(texts)
    return rows


def _spans(
    arrays: Mapping[str, np.ndarray], actions: list[tuple[str, ...]], count: int, path: Path
) -> list[tuple[tuple[int, int], ...]]:
    """Return the spans of the actions of each clip."""
    if "spans" not in arrays:
        return [()] * count
    values, most = arrays["spans"], max(map(len, actions))
    fits = values.ndim == 3 and values.shape[0] == count and values.shape[1] >= most
    if not fits or values.shape[2] != 2 or values.dtype.kind not in "iu" or not most:
        raise DataError(
            f"{path}: 'spans' must be ({count}, A, 2), two whole numbers for each of the A "
            f"'actions', got {values.dtype} {values.shape} for {most} actions"
        )
    return [
        tuple((int(start), int(stop)) for start, stop in row[: len(names)])
        for row, names in zip(values, actions, strict=True)
    ]


def _check_views(views: Mapping[str, np.ndarray], count: int, prefix: str, path: Path) -> None:
    if not views:
        return
    total = next(iter(views.values())).shape[2]
    steps = {values.shape[1] for values in views.values()}
    turned = len(views) > 1 and len(steps) == 1 and len({v.shape[2] for v in views.values()}) > 1
    for view, values in views.items():
        wanted = (count, values.shape[1], total)
        if values.shape != wanted:
            raise DataError(
                f"{path}: {prefix + view!r} must be {wanted}, got {values.shape}"
                + (_TURN if turned else "")
            )


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
    count, bins, total = next(iter(views.values())).shape
    lengths: list[int] = arrays[name].tolist() if name in arrays else [total] * count
    for i, length in enumerate(lengths):
        if type(length) is not int or not 1 <= length <= total:
            turned = type(length) is int and total < length <= bins
            raise DataError(
                f"{path}: {name}[{i}] must be 1 to {total}, got {length!r}"
                + (_TURN if turned else "")
            )
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
