"""Changes along time: stretch, crop and mask the frames of a map, and move the spans with them.

Every view of a signal takes the same arguments, so that its frames still belong together.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

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
        ValueError: `frames` is less than 1.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
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
    """
    moved = []
    for start, stop in spans:
        # Halves are rounded up, so that neighbours still share an edge.
        first, end = (int(edge * stretched / frames + 0.5) for edge in (start, stop))
        first = min(first, stretched - 1)
        moved.append((first, max(end, first + 1)))
    return tuple(moved)


def crop_time(values: Map, start: int, stop: int) -> Float[np.ndarray, "F S"]:
    """Return the frames from `start` to `stop`, `stop` excluded.

    Raises:
        ValueError: `start` and `stop` do not enclose at least one frame of the map.
    """
    _check_range(start, stop, values.shape[1], "frames")
    return values[:, start:stop].copy()


def crop_spans(spans: Sequence[Span], start: int, stop: int) -> tuple[Span, ...]:
    """Return the spans of a signal after `crop_time` from `start` to `stop`.

    Raises:
        ValueError: a span reaches out of the crop: the caption of the clip would then describe an
            action that the clip does not show.
    """
    for span in spans:
        if not start <= span[0] < span[1] <= stop:
            raise ValueError(
                f"start and stop must enclose every span, got ({start}, {stop}) for span {span}"
            )
    return tuple((first - start, end - start) for first, end in spans)


def mask_time(values: Map, start: int, stop: int) -> Map:
    """Replace the frames from `start` to `stop`, `stop` excluded, by the mean of the map.

    Raises:
        ValueError: `start` and `stop` are not in order within 0..T.
    """
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
