r"""Soft-DTW over many pairs at once, anti-diagonal by anti-diagonal, and its exact gradient.

Every path from (1, 1) to (t, l) weighs exactly t + l: a step down or right counts its cell's cost
once, a diagonal step and the first cell count it twice (Sakoe and Chiba's symmetric2). Hence a
constant added to every cost adds that constant times t + l, whatever the path, and

.. math::
    \mathrm{softDTW}_\gamma(1 - s) = \mathrm{softDTW}_\gamma(-s) + t + l .

The recursion therefore runs on ``rates = s/γ - λ``, with λ the growth of the number of paths per
unit of weight: what it carries is then of the size of the *differences* between paths, and float32
is enough where path costs in the thousands would drown them. It carries the logarithm of the total
weight ``exp(rates)`` of all paths into a cell,

.. math::
    a_{tl} = r_{tl} + \log\big( e^{a_{t-1,l}} + e^{a_{t,l-1}} + e^{a_{t-1,l-1} + r_{tl}} \big) ,

(in logarithms to base 2 here, as torch takes powers of 2 in a third of the time of powers of e)
and its gradient is the expected number of times that a path meets a cell, diagonal steps counted
twice: the expected alignment.

Layout: rates are (T, L, n), the n pairs ("lanes") innermost. The cells of an anti-diagonal are a
strided view of that, n contiguous numbers each, so no skewed copy is made and every operation
runs over whole lanes.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GROWTH = math.log2(1 + math.sqrt(2))
"""Base 2 logarithm of the growth of the number of paths (Delannoy numbers) per unit of weight."""

_NEVER = -1e30
"""Log weight of a cell that no path reaches; finite, so that differences are never NaN."""


def forward(
    rates: Float[Tensor, "T L n"],
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
    allowed: Bool[Tensor, "T L n"] | None = None,
    shares: list[Tensor] | None = None,
) -> Float[Tensor, "n"]:
    """Log2 of the total weight of all paths from the first cell to (t, l), each lane at its own.

    Args:
        rates: log (base 2) of the weight of each cell.
        x_lengths: t of each lane, 1 <= t <= T.
        y_lengths: l of each lane, 1 <= l <= L.
        allowed: False where no path may pass. Anti-diagonals are cut to what some lane allows.
        shares: if given, one tensor per anti-diagonal is appended: (3, cells, n), the shares of
            the ways into each cell (from above, from the left, diagonally), for `backward`.

    Cost: four transcendentals a cell; memory O(T·n) beside the rates and the shares.
    """
    steps, _, lanes = rates.shape
    ends = _Ends(x_lengths, y_lengths)
    result = rates.new_empty(lanes)
    # Row t + 1 of a buffer is cell t of an anti-diagonal; the first and last row are the border.
    last, before, current = (rates.new_full((steps + 2, lanes), _NEVER) for _ in range(3))
    room = rates.new_empty(3, steps, lanes)
    peaks = rates.new_empty(steps, lanes)
    for k, (low, high) in enumerate(_spans(rates, allowed)):
        rate = _diagonal(rates, k, low, high)
        cells = current[low + 1 : high + 1]
        ways = room[:, : high - low] if shares is None else torch.empty_like(room[:, : high - low])
        if k == 0:
            torch.mul(rate, 2, out=cells)
            ways.zero_()[2] = 1.0
        else:
            above, left, peak = last[low:high], last[low + 1 : high + 1], peaks[: high - low]
            torch.add(before[low:high], rate, out=ways[2])
            torch.maximum(above, left, out=peak)
            torch.maximum(peak, ways[2], out=peak)
            torch.sub(above, peak, out=ways[0])
            torch.sub(left, peak, out=ways[1])
            ways[2].sub_(peak)
            ways.exp2_()
            torch.sum(ways, 0, out=cells)
            if shares is not None:
                ways.div_(cells)
            cells.log2_().add_(peak).add_(rate)
        if shares is not None:
            shares.append(ways)
        if allowed is not None:
            cells.masked_fill_(~_diagonal(allowed, k, low, high), _NEVER)
            # What these rows held three anti-diagonals ago is next to be read.
            current[low] = _NEVER
            current[high + 1] = _NEVER
        for lane, t in ends.at(k):
            result[lane] = current[t + 1, lane]
        before, last, current = last, current, before
    return result


def backward(
    grad: Float[Tensor, "n"],
    shares: list[Tensor],
    rates: Float[Tensor, "T L n"],
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
    allowed: Bool[Tensor, "T L n"] | None = None,
) -> Float[Tensor, "T L n"]:
    """Gradient of ``grad · forward(...)`` to the rates, written over them; `shares` is used up.

    For grad = 1 this is the expected alignment: how often a path meets each cell, diagonal steps
    and the first cell counted twice; each lane sums to t + l. No transcendentals.
    """
    steps, _, lanes = rates.shape
    ends = _Ends(x_lengths, y_lengths)
    spans = list(enumerate(_spans(rates, allowed)))
    # Rows as in `forward`: what later anti-diagonals sent to this one, and to the one before.
    here, earlier = (rates.new_zeros(steps + 2, lanes) for _ in range(2))
    for k, (low, high) in reversed(spans):
        for lane, t in ends.at(k):
            here[t + 1, lane] += grad[lane]
        arrived = here[low + 1 : high + 1]
        ways = shares.pop().mul_(arrived)
        torch.add(arrived, ways[2], out=_diagonal(rates, k, low, high))
        earlier[low:high].add_(ways[0])
        earlier[low + 1 : high + 1].add_(ways[1])
        # This anti-diagonal is done; its rows now collect for the one two before it.
        here[low:high].copy_(ways[2])
        here[high].zero_()
        here, earlier = earlier, here
    return rates if allowed is None else rates.masked_fill_(~allowed, 0.0)


def band_mask(
    x_lengths: Int[Tensor, "n"], y_lengths: Int[Tensor, "n"], steps: int, others: int, band: float
) -> Bool[Tensor, "T L n"]:
    """True at the cells of each lane that lie in its band.

    Cell (i, j), counted from 0, of a lane of lengths (t, l) lies in the band when
    ``|i/(t-1) - j/(l-1)| <= max(band, 1/(2·(min(t, l) - 1)))``: the second is the least width at
    which the corner can always be reached. ``band=1`` allows everything.
    """
    # Once for every distinct pair of lengths: lanes are many, and often alike.
    pairs, where = torch.unique(torch.stack((x_lengths, y_lengths)), dim=1, return_inverse=True)
    x_lengths, y_lengths = pairs
    i = torch.arange(steps, device=x_lengths.device, dtype=torch.float64)[:, None, None]
    j = torch.arange(others, device=x_lengths.device, dtype=torch.float64)[None, :, None]
    t, length = (x_lengths - 1).double(), (y_lengths - 1).double()
    # Multiplied out: lengths of 1 need no case, and whole numbers compare exactly.
    width = torch.maximum(band * t * length, torch.maximum(t, length) / 2)
    inside = (i * length - j * t).abs() <= width * (1 + 1e-9)
    return (inside & (i <= t) & (j <= length))[:, :, where]


def log_paths(
    x_lengths: Int[Tensor, "n"], y_lengths: Int[Tensor, "n"], band: float | None
) -> Float[Tensor, "n"]:
    """``log2 N(t, l, band) - λ(t + l)`` in float64, N the number of paths of each lane.

    Without a band N is a Delannoy number, ``sum_k C(t-1,k) C(l-1,k) 2^k``. With one, it is this
    module's recursion on zero cost, run once for every distinct pair of lengths.
    """
    pairs, where = torch.unique(torch.stack((x_lengths, y_lengths)), dim=1, return_inverse=True)
    counts = []
    for t, length in zip(*(side.split(_PAIRS_AT_ONCE) for side in pairs), strict=True):
        steps, others = int(t.max()), int(length.max())
        if band is None:
            k = torch.arange(min(steps, others), device=t.device)
            terms = _log_choose(t - 1, k) + _log_choose(length - 1, k) + k.double() * math.log(2)
            logs = torch.logsumexp(terms, 1) / math.log(2)
            counts.append(logs - GROWTH * (t + length).double())
        else:
            allowed = band_mask(t, length, steps, others, band)
            rates = torch.full(
                (steps, others, len(t)), -GROWTH, dtype=torch.float64, device=t.device
            )
            counts.append(forward(rates, t, length, allowed))
    return torch.cat(counts)[where]


_PAIRS_AT_ONCE = 256


def _log_choose(m: Int[Tensor, "n"], k: Int[Tensor, "K"]) -> Float[Tensor, "n K"]:
    n = m[:, None].double()
    logs = (
        torch.lgamma(n + 1) - torch.lgamma(k.double() + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    )
    return logs.masked_fill(k > m[:, None], -torch.inf)


class _Ends:
    """Which lanes end on which anti-diagonal, and in which row."""

    def __init__(self, x_lengths: Tensor, y_lengths: Tensor) -> None:
        ends = x_lengths + y_lengths - 2
        self._lanes = torch.argsort(ends)
        self._rows = (x_lengths - 1)[self._lanes]
        self._stops = [0, *torch.bincount(ends).cumsum(0).tolist()]

    def at(self, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        if k + 1 < len(self._stops) and self._stops[k] < self._stops[k + 1]:
            here = slice(self._stops[k], self._stops[k + 1])
            yield self._lanes[here], self._rows[here]


def _spans(rates: Tensor, allowed: Tensor | None) -> list[tuple[int, int]]:
    """First cell, and one past the last, of every anti-diagonal; counted along x."""
    steps, others, _ = rates.shape
    full = [(max(0, k - others + 1), min(k, steps - 1) + 1) for k in range(steps + others - 1)]
    if allowed is None:
        return full
    i, j = allowed.any(2).nonzero(as_tuple=True)
    low = torch.full((len(full),), steps, device=i.device).scatter_reduce(0, i + j, i, "amin")
    high = torch.zeros(len(full), dtype=torch.long, device=i.device)
    high = high.scatter_reduce(0, i + j, i + 1, "amax")
    # A lane may have no cell here and one further down later (a path crosses by diagonal steps),
    # so spans are widened, from the end: what a span reads of the two before it lies in them or
    # next to them.
    spans, first, stop = [], steps, 0
    ranges = zip(low.tolist(), high.tolist(), full, strict=True)
    for lowest, highest, (start, end) in reversed(list(ranges)):
        first = min(first, lowest, end - 1)
        stop = min(max(stop - 1, highest, first + 1), end)
        first = max(first, start)
        spans.append((first, stop))
    return spans[::-1]


def _diagonal(cells: Tensor, k: int, low: int, high: int) -> Tensor:
    """Cells (i, k - i) for low <= i < high, as a (high - low, n) view."""
    _, others, lanes = cells.shape
    offset = cells.storage_offset() + (low * others + k - low) * lanes
    return cells.as_strided((high - low, lanes), ((others - 1) * lanes, 1), offset)
