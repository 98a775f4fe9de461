"""Changes along the bins of a map: shift them, mask some, and find out whether they are ordered."""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from clipseq.augment.maps import check_map, check_range
from clipseq.engine.options import LARGEST, check_kind, whole_number

Map = Float[np.ndarray, "F T"]

RESEMBLANCE = 0.1
"""The least excess of the correlation of neighbouring bins over that of others; see below."""


def shift_bins(values: Map, bins: int) -> Map:
    """Move every row by `bins` bins towards higher ones; the row at the edge fills the gap.

    ``result[f] = values[clip(f - bins, 0, F - 1)]``

    Raises:
        TypeError: `values` is not an array of real numbers, or `bins` is not a whole number.
        ValueError: `values` is not (F, T).
    """
    check_map(values)
    bins = whole_number("bins", bins, least=-LARGEST)
    rows = np.arange(len(values)) - bins
    return values[np.clip(rows, 0, len(values) - 1)]


def mask_bins(values: Map, start: int, stop: int) -> Map:
    """Replace the bins from `start` to `stop`, `stop` excluded, by the mean of the map.

    Raises:
        TypeError: `values` is not an array of real numbers, or a bound is not a whole number.
        ValueError: `values` is not (F, T); `start` and `stop` are not in order within 0..F.
    """
    check_map(values)
    start, stop = check_range(start, stop)
    if not 0 <= start <= stop <= len(values):
        raise ValueError(
            f"start and stop must be in order within the {len(values)} bins, got ({start}, {stop})"
        )
    masked = values.copy()
    if start < stop:
        masked[start:stop] = values.mean(dtype=np.float64)
    return masked


def views_of_channels(signals: Iterable[Mapping[str, np.ndarray]]) -> frozenset[str]:
    """Return the views whose rows are channels, such as joints, and not neighbouring bins.

    The rows of a spectrogram are ordered: neighbours resemble each other more than others do. Rows
    that are not ordered must not be shifted or tilted. A view counts as ordered if the mean
    correlation of neighbouring rows (over all frames of `signals`, of their absolute values)
    exceeds that of all other pairs of rows by at least `RESEMBLANCE`. A view of fewer than eight
    rows never does.

    Args:
        signals: the maps (F, T) of some clips, each by view.

    Raises:
        TypeError: a signal is not a mapping of arrays of real numbers.
        ValueError: a map is not (F, T), or the maps of a view differ in their bins.
    """
    check_kind("signals", signals, Iterable, "an iterable of mappings from views to maps")
    maps: dict[str, list[np.ndarray]] = {}
    for signal in signals:
        check_kind("signals", signal, Mapping, "mappings from views to maps")
        for view, values in signal.items():
            check_map(values)
            maps.setdefault(view, []).append(values)
    return frozenset(view for view, parts in maps.items() if not _ordered(parts))


def _ordered(parts: list[np.ndarray]) -> bool:
    rows = np.concatenate(parts, axis=1).astype(np.float64)
    varying = rows[rows.std(axis=1) > 0]
    count = len(varying)
    if count < 8:
        return False
    alike = np.abs(np.corrcoef(varying))
    distance = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    excess = alike[distance == 1].mean() - alike[distance > 1].mean()
    return bool(excess >= RESEMBLANCE)
