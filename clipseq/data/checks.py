"""Checks that clips form a valid data set, run whenever one is opened, created or written."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipseq.data.arrays import check_rate
from clipseq.data.clip import SPLITS, TEXT, Clip, frame_count
from clipseq.data.header import Axis, Header
from clipseq.errors import DataError, suggest

_MODALITY = re.compile(r"[a-z][a-z0-9_]*")
_LARGEST = float(np.finfo(np.float32).max)
_BATCH_KEYS = (TEXT, "ids")
_BATCH_SUFFIXES = ("_lengths", "_mask")


def check_clips(clips: Sequence[Clip], header: Header, where: str) -> None:
    """Raise DataError if clips do not form a valid data set; its message begins with `where`."""
    if not clips:
        raise DataError(f"{where}: a data set must hold at least one clip, got no clips")
    for number, clip in enumerate(clips):
        if not isinstance(clip, Clip):
            raise DataError(
                f"{where}: every clip must be a Clip, got {type(clip).__name__} at place {number}"
            )
        _check_kinds(clip, f"{where}: clip {clip.id!r}")
    first = clips[0]
    if not first.signal:
        raise DataError(f"{where}: clip {first.id!r} must have at least one map, got no map")
    _check_header(header, first, where)
    bins = {
        name: {view: np.shape(m)[:1] for view, m in maps.items()}
        for name, maps in _signals(first, header).items()
    }
    seen: set[str] = set()
    owners: dict[str, tuple[str, str]] = {}
    for clip in clips:
        at = f"{where}: clip {clip.id!r}"
        _check_unicode(clip.id, f"{at}: its id")
        for name, texts in (("an action", clip.actions), ("a source", clip.sources)):
            for text in texts:
                _check_unicode(text, f"{at}: {name}")
        if clip.id in seen:
            raise DataError(f"{at}: its id must be unique, got {clip.id!r} used twice; rename one")
        seen.add(clip.id)
        if bool(clip.paired) != bool(first.paired):
            with_it, without = (clip, first) if clip.paired else (first, clip)
            raise DataError(
                f"{where}: every clip or no clip must have a second signal (paired), "
                f"got one in {with_it.id!r} and no second signal in {without.id!r}"
            )
        for name, maps in _signals(clip, header).items():
            _check_maps(name, maps, bins[name], first.id, at)
        _check_captions(clip, first, at)
        _check_actions(clip, at)
        if not isinstance(clip.split, str) or clip.split not in SPLITS:
            raise DataError(
                f"{at}: split must be one of {', '.join(SPLITS)}, "
                f"got {clip.split!r}{suggest(clip.split, SPLITS)}"
            )
        if clip.label is not None and clip.label not in header.class_captions:
            raise DataError(
                f"{at}: label must have a class caption, got {clip.label!r}"
                f"{suggest(clip.label, header.class_captions)}"
            )
        _check_sources(clip, owners, at)


def _check_kinds(clip: Clip, at: str) -> None:
    """Raise DataError unless the fields of a clip that was created in Python are of their kinds."""
    for name in ("signal", "paired"):
        maps = getattr(clip, name)
        if not isinstance(maps, Mapping) or not all(
            isinstance(view, str) and isinstance(values, np.ndarray)
            for view, values in maps.items()
        ):
            raise DataError(f"{at}: {name} must map names of views to arrays (F, T), got {maps!r}")
    for name in ("actions", "spans", "permuted", "sources"):
        value = getattr(clip, name)
        if not isinstance(value, list | tuple):
            raise DataError(f"{at}: {name} must be a tuple, got {value!r}")
    for name, kinds in (("caption", str), ("label", str | None)):
        value = getattr(clip, name)
        if not isinstance(value, kinds):
            raise DataError(f"{at}: the {name} must be a string, got {value!r}")
    for span in clip.spans:
        if not (
            isinstance(span, list | tuple)
            and len(span) == 2
            and all(type(edge) is int or isinstance(edge, np.integer) for edge in span)
        ):
            raise DataError(f"{at}: a span must be two whole numbers, got {span!r}")


def _signals(clip: Clip, header: Header) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the maps of each signal of a clip by the name of its modality."""
    if header.paired_modality is None:
        return {header.modality: clip.signal}
    return {header.modality: clip.signal, header.paired_modality: clip.paired}


def _check_header(header: Header, first: Clip, where: str) -> None:
    paired = bool(first.paired)
    _check_modality(header.modality, f"{where}: modality")
    if header.paired_modality is not None:
        _check_modality(header.paired_modality, f"{where}: paired_modality")
    if (header.paired_modality is not None) != paired:
        raise DataError(
            f"{where}: paired_modality must name the second signal of the clips, and be None if "
            f"they have no second signal, got {header.paired_modality!r} for clips "
            f"{'with' if paired else 'without'} one"
        )
    check_rate(header.frame_rate, f"{where}: frame_rate")
    check_rate(header.paired_frame_rate, f"{where}: paired_frame_rate")
    if header.modality == header.paired_modality:
        raise DataError(
            f"{where}: paired_modality must differ from modality, got {header.modality!r} for both"
        )
    if header.paired_frame_rate is not None and not paired:
        raise DataError(
            f"{where}: paired_frame_rate must be None without a second signal, "
            f"got {header.paired_frame_rate}"
        )
    _check_axes(header.axes, first.signal, f"{where}: axes")
    _check_axes(header.paired_axes, first.paired, f"{where}: paired_axes")
    for name, caption in header.class_captions.items():
        _check_unicode(name, f"{where}: the name of a class")
        _check_caption(caption, f"{where}: the caption of class {name!r}")


def _check_axes(axes: Mapping[str, Axis], maps: Mapping[str, np.ndarray], what: str) -> None:
    for view, axis in axes.items():
        if view not in maps:
            raise DataError(
                f"{what} must name views of the clips, {sorted(maps)}, got {view!r}"
                f"{suggest(view, maps)}"
            )
        numbers = (axis.first, axis.last, axis.scale, axis.offset)
        if not np.isfinite(numbers).all() or axis.scale == 0:
            raise DataError(
                f"{what}: first, last, scale and offset of {view!r} must be finite and scale not "
                f"0, got {numbers}"
            )


def _check_modality(name: Any, what: str) -> None:
    if not isinstance(name, str) or not _MODALITY.fullmatch(name):
        raise DataError(
            f"{what} must be a name of lower-case letters, digits and '_' that starts with a "
            f"letter, got {name!r}"
        )
    if name in _BATCH_KEYS or name.endswith(_BATCH_SUFFIXES):
        raise DataError(
            f"{what} must not be one of {', '.join(_BATCH_KEYS)} and not end in "
            f"{' or '.join(_BATCH_SUFFIXES)}, which are other keys of a batch, got {name!r}"
        )


def _check_captions(clip: Clip, first: Clip, at: str) -> None:
    if clip.caption or not clip.paired or clip.permuted:
        _check_caption(clip.caption, f"{at}: the caption")
    if bool(clip.caption) != bool(first.caption):
        raise DataError(
            f"{at}: every clip or no clip must have a caption, got {clip.caption!r}, "
            f"and {first.caption!r} in clip {first.id!r}"
        )
    for caption in clip.permuted:
        _check_caption(caption, f"{at}: a permuted caption")
    if clip.caption in clip.permuted:
        raise DataError(
            f"{at}: a permuted caption must differ from the caption, got {clip.caption!r} for both"
        )


def _check_caption(caption: Any, what: str) -> None:
    if not isinstance(caption, str):
        raise DataError(f"{what} must be a string, got {caption!r}")
    if not caption.strip():
        raise DataError(f"{what} must not be empty, got {caption!r}")
    _check_unicode(caption, what)


def _check_unicode(text: object, what: str) -> None:
    """Raise DataError unless `text` is a string that UTF-8 can represent."""
    if not isinstance(text, str):
        raise DataError(f"{what} must be a string, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{what} must be Unicode text, got {text!r} with half of a surrogate pair; "
            "write the whole character"
        ) from None


def _check_actions(clip: Clip, at: str) -> None:
    if clip.spans and len(clip.spans) != len(clip.actions):
        raise DataError(
            f"{at}: spans must be one per action, "
            f"got {len(clip.spans)} spans for {len(clip.actions)} actions"
        )
    for span in clip.spans:
        start, stop = span
        if not 0 <= start < stop <= clip.frames:
            raise DataError(f"{at}: a span must lie in its {clip.frames} frames, got span {span}")


def _check_sources(clip: Clip, owners: dict[str, tuple[str, str]], at: str) -> None:
    # A one-action clip may share a source with the test clips, and with no others.
    group = "test" if clip.split == "zeroshot" else clip.split
    for source in clip.sources:
        other, owner = owners.setdefault(source, (group, clip.id))
        if other != group:
            raise DataError(
                f"{at}: a source must lie in one split, got {source!r} in {clip.split!r} "
                f"and, with clip {owner!r}, in {other!r}"
            )


def _check_maps(
    name: str,
    maps: Mapping[str, np.ndarray],
    bins: Mapping[str, tuple[int, ...]],
    first: str,
    at: str,
) -> None:
    if maps.keys() != bins.keys():
        raise DataError(
            f"{at}: its {name} must have the views {sorted(bins)} of clip {first!r}, "
            f"got {sorted(maps)}"
        )
    for view, values in maps.items():
        what = f"{at}: {name} view {view!r}"
        if values.ndim != 2 or values.dtype.kind != "f":
            raise DataError(
                f"{what} must be a float array (F, T), got {values.dtype} {values.shape}"
            )
        if values.shape[:1] != bins[view] or not values.shape[0]:
            turned = values.shape[0] and values.shape[1:] == bins[view]
            raise DataError(
                f"{what} must have the {bins[view][0]} bins of clip {first!r}, and at least 1, "
                f"got {values.shape[0]} bins"
                + ("; it seems to be (T, F), so transpose it" if turned else "")
            )
        total = frame_count(maps)
        if values.shape[1] != total or not total:
            raise DataError(
                f"{what} must have the {total} frames of the clip's first view, and at least 1, "
                f"got {values.shape[1]} frames"
            )
        # NaN is not within the limits either.
        within = np.abs(values) <= _LARGEST if values.dtype.itemsize > 4 else np.isfinite(values)
        if not within.all():
            frame = int(np.flatnonzero(~within.all(axis=0))[0])
            raise DataError(
                f"{what} must be finite, also in float32, got NaN, infinity or a number beyond "
                f"{_LARGEST:.2g}, first in frame {frame}; correct or leave out that clip"
            )
