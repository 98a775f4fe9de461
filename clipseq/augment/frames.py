"""Changes along time: stretch, crop and mask the frames of a map, and move the spans with them.

Every view of a signal takes the same arguments, so that its frames still belong together.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clipseq.augment.maps import check_map, check_range, check_spans
from clipseq.engine.options import whole_number

Span = tuple[int, int]
Map = Float[np.ndarray, "F T"]


def stretch_time(values: Map, frames: int) -> Float[np.ndarray, "F S"]:
    """Return a map of T frames resampled to `frames` frames, S, by linear interpolation.

    Frame k of the result is the value at ``(k + 1/2) · T/S - 1/2``, and the first or the last frame
    where that lies outside the map: the edges of the map stay at its edges. With S = T, the result
    equals the map.

    Args:
        values: a map (F, T) of at least one frame.
        frames: S, at least 1.

    Raises:
        TypeError: `values` is not an array of real numbers, or `frames` is not a whole number.
        ValueError: `values` is not (F, T), or `frames` is less than 1.
    """
    check_map(values)
    frames = whole_number("frames", frames, least=1)
    last = values.shape[1] - 1
    places = np.clip((np.arange(frames) + 0.5) * (last + 1) / frames - 0.5, 0, last)
    before = np.floor(places).astype(int)
    share = (places - before).astype(values.dtype)
    after = np.minimum(before + 1, last)
    return values[:, before] * (1 - share) + values[:, after] * share


def stretch_spans(spans: Sequence[Span], frames: int, stretched: int) -> tuple[Span, ...]:
    """Return the spans of a signal of `frames` frames after `stretch_time` to `stretched` frames.

    The edges of a span are moved like those of the frames, to the nearest whole frame. A span keeps
    at least one frame.

    Raises:
        TypeError: `spans` are not pairs of whole numbers, or a number of frames is not whole.
        ValueError: a number is out of its range.
    """
    moved = []
    frames = whole_number("frames", frames, least=1)
    stretched = whole_number("stretched", stretched, least=1)
    for start, stop in check_spans(spans):
        # Halves are rounded up, so that neighbours still share an edge.
        first, end = (int(edge * stretched / frames + 0.5) for edge in (start, stop))
        first = min(first, stretched - 1)
        moved.append((first, max(end, first + 1)))
    return tuple(moved)


def crop_time(values: Map, start: int, stop: int) -> Float[np.ndarray, "F S"]:
    """Return the frames from `start` to `stop`, `stop` excluded.

    Raises:
        TypeError: `values` is not an array of real numbers, or a bound is not a whole number.
        ValueError: `values` is not (F, T), or the bounds do not enclose at least one frame of it.
    """
    check_map(values)
    start, stop = check_range(start, stop)
    _check_range(start, stop, values.shape[1], "frames")
    return values[:, start:stop].copy()


def crop_spans(spans: Sequence[Span], start: int, stop: int) -> tuple[Span, ...]:
    """Return the spans of a signal after `crop_time` from `start` to `stop`.

    Raises:
        TypeError: `spans` are not pairs of whole numbers, or a bound is not a whole number.
        ValueError: a span reaches out of the crop: the caption of the clip would then describe an
            action that the clip does not show.
    """
    start, stop = check_range(start, stop)
    pairs = check_spans(spans)
    for span in pairs:
        if not start <= span[0] < span[1] <= stop:
            raise ValueError(
                f"start and stop must enclose every span, got ({start}, {stop}) for span {span}"
            )
    return tuple((first - start, end - start) for first, end in pairs)


def mask_time(values: Map, start: int, stop: int) -> Map:
    """Replace the frames from `start` to `stop`, `stop` excluded, by the mean of the map.

    Raises:
        TypeError: `values` is not an array of real numbers, or a bound is not a whole number.
        ValueError: `values` is not (F, T); `start` and `stop` are not in order within 0..T.
    """
    check_map(values)
    start, stop = check_range(start, stop)
    _check_range(start, stop, values.shape[1], "frames", least=0)
    masked = values.copy()
    if start < stop:
        masked[:, start:stop] = values.mean(dtype=np.float64)
    return masked


def _check_range(start: int, stop: int, count: int, of: str, *, least: int = 1) -> None:
    if not 0 <= start <= start + least <= stop <= count:
        raise ValueError(
            f"start and stop must enclose at least {least} of the {count} {of}, "
            f"got ({start}, {stop})"
        )
