r"""Soft-DTW over many pairs at once, anti-diagonal by anti-diagonal, and its exact gradient.

Every path from (1, 1) to (t, l) weighs exactly t + l: a step down or right counts its cell's cost
once, and a diagonal step and the first cell count it twice (Sakoe and Chiba's symmetric2). Hence a
constant added to every cost adds that constant times t + l to every path, and

.. math::
    \mathrm{softDTW}_\gamma(1 - s) = \mathrm{softDTW}_\gamma(-s) + t + l .

The recursion therefore runs on ``rates = s/γ - λ``, where λ is the growth of the number of paths
per unit of weight. Its values then have the size of the *differences* between paths, for which
float32 is enough; path costs in the thousands would swamp these differences. It carries the
logarithm of the total weight ``exp(rates)`` of all paths into a cell,

.. math::
    a_{tl} = r_{tl} + \log\big( e^{a_{t-1,l}} + e^{a_{t,l-1}} + e^{a_{t-1,l-1} + r_{tl}} \big) ,

(here with logarithms to base 2, since torch takes powers of 2 in a third of the time of powers of
e). Its gradient is the expected number of times that a path meets a cell, with diagonal steps
counted twice: the expected alignment.

Layout: a field is (rows + 1, columns + 1, n), with the n pairs ("lanes") innermost; row 0 and
column 0 are a border that holds what precedes the field. The cells of an anti-diagonal, and those
before them, are strided views of it with n contiguous numbers each, so nothing is copied, and log
weights replace the rates in place. A band cuts the field into strips (see `strips`), and cells of a
strip that lie in no lane's band are skipped.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.engine import exact_on

GROWTH = math.log2(1 + math.sqrt(2))
"""Base 2 logarithm of the growth of the number of paths (Delannoy numbers) per unit of weight."""

NEVER = -1e30
"""Log weight of a cell that no path reaches; finite, so that differences are never NaN."""

LEAST = 2.0**-60
"""Smallest share of a way into a cell, and share of a lane's gradient that every way receives.

Away from the paths that matter, an alignment falls exponentially until it is subnormal, and with
such numbers many processors compute a hundred times as slowly, in matrix products too. With these
bounds, no number of a recursion is subnormal. What they add up to, over all cells of a lane, is
less than float32 resolves.
"""

Reach = list[tuple[float, float]]
"""First and last column, counted from 0, of all lanes' bands together, in each row of a strip."""


@attrs.frozen(eq=False)
class Strip:
    """A stretch of x, and the columns of y that paths may reach in it, for each lane.

    Attributes:
        start: first step of x.
        rows: number of steps of x, from 0 to shape[0].
        first: first step of y.
        shape: rows and columns of a field that is large enough for every lane.
    """

    start: Int[Tensor, " x"]
    rows: Int[Tensor, " x"]
    first: Int[Tensor, " y"]
    shape: tuple[int, int]

    def for_lanes(self, x_of: Int[Tensor, "n"], y_of: Int[Tensor, "n"]) -> "Strip":
        """Return the strip for lanes that pair x number x_of with y number y_of."""
        return Strip(self.start[x_of], self.rows[x_of], self.first[y_of], self.shape)


def strips(
    x_lengths: Int[Tensor, " x"], y_lengths: Int[Tensor, " y"], band: float | None
) -> list[Strip]:
    """Cut the cells of every pair into strips that leave out most cells outside a band.

    Without a band, there is one strip. With one, x is cut at the same *relative* positions i/(t-1),
    as a band is: lanes of any lengths then differ in the first column of a strip, but not in its
    number of columns. Strips have about ``1 + 1/(2·band·strips)`` times the cells of the band.
    """
    device = x_lengths.device
    steps, others = int(x_lengths.max()), int(y_lengths.max())
    count = 1
    if band is not None:
        one = bool((x_lengths == steps).all() and (y_lengths == others).all())
        size = _STRIP_OF_ONE_LENGTH if one else _STRIP
        count = min(math.ceil(1 / max(band, 1e-9)), -(-(steps + others) // size))
    if band is None or 2 * band + 1 / count >= 0.9:
        zero = torch.zeros_like(x_lengths)
        return [Strip(zero, x_lengths, torch.zeros_like(y_lengths), (steps, others))]
    x_lengths, y_lengths = (side.to(exact_on(device)) for side in (x_lengths, y_lengths))
    # The smallest width at which the corner of the shortest x can always be reached.
    least = 0.5 / (torch.minimum(y_lengths, x_lengths.min()) - 1).double()
    reach = least.clamp(min=band) + 1e-9
    p = torch.arange(count + 1, device=x_lengths.device)[:, None]
    share = p.double() / count  # integers would be divided in float32
    # Rows with p/count <= i/(t-1) < (p+1)/count; the last row belongs to the last strip.
    start = (p * (x_lengths - 1) + count - 1) // count
    start[-1] = x_lengths
    rows = start.diff(dim=0)
    low = torch.ceil((share[:-1] - reach) * (y_lengths - 1))
    high = torch.floor((share[1:] + reach) * (y_lengths - 1))
    # The band of a single step is infinitely wide, and infinity times a length of 0 is NaN.
    low = low.nan_to_num(0.0).clamp(min=0).long()
    high = torch.minimum(high.nan_to_num(0.0).clamp(max=others).long() + 1, y_lengths)
    shapes = zip(rows.amax(1).tolist(), (high - low).amax(1).tolist(), strict=True)
    start, rows, low = start.to(device), rows.to(device), low.to(device)
    return [
        Strip(start[k], rows[k], low[k], shape) for k, shape in enumerate(shapes) if shape[0] > 0
    ]


def split_by_band(x_lengths: list[int], band: float | None) -> list[int]:
    """Cut descending lengths into parts with bands of similar widths, and return their sizes.

    The strips of a part are as wide as its shortest x needs. A short x has a wide band, since its
    corner must be reachable.
    """
    if band is None:
        return [len(x_lengths)]
    sizes: list[int] = []
    widest = -1.0
    for steps in x_lengths:
        width = max(band, 0.5 / (steps - 1) if steps > 1 else math.inf)
        if width > widest:
            sizes.append(0)
            widest = 1.5 * width
        sizes[-1] += 1
    return sizes


_STRIP, _STRIP_OF_ONE_LENGTH = 24, 36
"""Smallest average sum of rows and columns of a strip: in smaller ones, operations are too small.

Where lengths differ, bands drift apart with the distance from the start of a strip.
"""


class Sweep:
    """The cells of a strip, and the views of its anti-diagonals, which are made once.

    Args:
        field: (rows + 1, columns + 1, n), the base 2 logarithm of the weight of each cell, `NEVER`
            where no path may pass, behind a border (row 0, column 0) of any content. Fill it anew
            before every `forward`.
        reach: columns that a path of any lane may pass, for each row; None for all.
        room: memory of `ways_at_once` elements per lane.
        shares: memory for `backward`, three elements for each of `cells_within`.
    """

    def __init__(
        self,
        field: Float[Tensor, "_ _ n"],
        reach: Reach | None,
        room: Tensor,
        shares: Tensor | None = None,
    ) -> None:
        self.field = field
        self._keeps = shares is not None
        rows, columns, lanes = field.shape
        base, done = field.storage_offset(), 0
        self._views = []
        for corner, count in diagonals(rows - 1, columns - 1, reach):
            # `corner` is the cell diagonally before the first one, in the order of memory.
            offset, size = base + corner * lanes, count * lanes
            stride, shape = (columns - 1) * lanes, (count, lanes)
            beside = field.as_strided((2, *shape), (stride, stride, 1), offset + lanes)
            if shares is None:
                ways = room[: 3 * size]
            else:
                ways = shares[done : done + 3 * size]
                done += 3 * size
            ways = ways.view(3, *shape)
            above, left, across = ways.unbind()
            from_above, from_left = beside.unbind()
            self._views.append(
                _Views(
                    cells=field.as_strided(shape, (stride, 1), offset + (columns + 1) * lanes),
                    before=field.as_strided(shape, (stride, 1), offset),
                    beside=beside,
                    from_above=from_above,
                    from_left=from_left,
                    ways=ways,
                    straight=ways[:2],
                    above=above,
                    left=left,
                    across=across,
                    peak=room[3 * size : 4 * size].view(shape),
                )
            )

    def weigh(self) -> None:
        """Replace the weight of each cell by that of all paths into it, in place."""
        for at in self._views:
            cells, across, peak, ways = at.cells, at.across, at.peak, at.ways
            torch.add(at.before, cells, out=across)
            torch.maximum(at.from_above, at.from_left, out=peak)
            torch.maximum(peak, across, out=peak)
            torch.sub(at.beside, peak, out=at.straight)
            across.sub_(peak)
            ways.clamp_(min=_DEEPEST).exp2_()
            # The total overwrites the peak, which is added first.
            cells.add_(peak)
            torch.add(at.above, at.left, out=peak).add_(across)
            if self._keeps:
                ways.div_(peak)
            cells.add_(peak.log2_())

    def spread(self, least: Float[Tensor, "n"]) -> None:
        """Pass the gradient of each cell, and `least`, on to those before it, in place."""
        for at in reversed(self._views):
            torch.addcmul(least, at.ways, at.cells, out=at.ways)
            at.from_above.add_(at.above)
            at.from_left.add_(at.left)
            at.before.add_(at.across)
            # A diagonal step counts its cell twice.
            at.cells.add_(at.across)


_DEEPEST = math.log2(LEAST)


class _Views(NamedTuple):
    """The views of one anti-diagonal of a `Sweep`: its cells, those before them, and the ways."""

    cells: Tensor
    before: Tensor  # diagonally
    beside: Tensor  # from_above and from_left
    from_above: Tensor
    from_left: Tensor
    ways: Tensor  # above, left and across: shares once they are divided
    straight: Tensor  # above and left
    above: Tensor
    left: Tensor
    across: Tensor
    peak: Tensor


def ways_at_once(shape: tuple[int, int], reach: Reach | None) -> int:
    """Return the number of elements per lane that a `Sweep` works on at once."""
    return 4 * max(count for _, count in diagonals(*shape, reach))


def forward(
    lanes: list[Strip], sweep: Callable[[int], Sweep], y_lengths: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Return log2 of the total weight of all paths from the first to the last cell of each lane.

    Args:
        lanes: the strips, for lanes, in order.
        sweep: function that is called with the number of every strip in turn; the field of its
            result is overwritten, and may be the same memory every time.
        y_lengths: l of each lane.

    Cost: four transcendentals per cell, and about ten operations of one pass; memory O(columns·n).
    """
    border = None
    for k, strip in enumerate(lanes):
        it = sweep(k)
        cells = it.field
        cells[:, 0] = NEVER
        if border is None:
            # Paths enter the first cell by a diagonal step from outside.
            cells[0] = NEVER
            cells[0, 0] = 0.0
        else:
            cells[0] = border
        it.weigh()
        if k + 1 < len(lanes):
            index, inside = _border(strip, lanes[k + 1])
            border = cells.reshape(-1)[index].masked_fill_(~inside, NEVER)
    return cells.view(-1)[_last(lanes[-1], y_lengths)]


def backward(
    grad: Float[Tensor, "n"],
    lanes: list[Strip],
    sweep: Callable[[int], Sweep],
    y_lengths: Int[Tensor, "n"],
) -> Iterator[tuple[int, Float[Tensor, "rows columns n"]]]:
    """Yield the gradient of ``grad · forward(...)`` to the rates, from the last strip to the first.

    For grad = 1 it is the expected alignment: how often a path meets each cell, with diagonal steps
    and the first cell counted twice; each lane sums to t + l. Instead of zero and of tiny numbers,
    cells hold about `LEAST` times `grad`. It takes no transcendentals.

    Args:
        grad: gradient to the result for each lane.
        lanes: as in `forward`.
        sweep: as in `forward`, and called after it. Shares must have been kept, and are
            overwritten. Use the gradient of a strip before you request the next one.
        y_lengths: l of each lane.
    """
    border, after = None, None
    for k in reversed(range(len(lanes))):
        strip, it = lanes[k], sweep(k)
        cells = it.field.zero_()
        flat = cells.view(-1)
        if after is None or border is None:
            flat[_last(strip, y_lengths)] = grad
        else:
            index, inside = _border(strip, after)
            flat.scatter_add_(0, index.view(-1), border.masked_fill_(~inside, 0.0).view(-1))
        it.spread(grad * LEAST)
        border, after = (cells[0].clone() if k > 0 else None), strip
        yield k, cells[1:, 1:]


def diagonals(rows: int, columns: int, reach: Reach | None = None) -> Iterator[tuple[int, int]]:
    """Yield the position of the cell diagonally before each anti-diagonal's first, and its length.

    `reach` gives the first and the last column that matter in each row; neither decreases from row
    to row. With it, only cells between them count, and anti-diagonals without such cells are left
    out.
    """
    start, stop = 0, 0
    for k in range(rows + columns - 1):
        start = max(start, k - columns + 1)
        stop = min(k + 1, rows)
        if reach is not None:
            while start < stop and k - start > reach[start][1]:
                start += 1
            while start < stop and k - stop + 1 < reach[stop - 1][0]:
                stop -= 1
        if start < stop:
            yield start * columns + k, stop - start


def cells_within(shape: tuple[int, int], reach: Reach | None) -> int:
    """Return the number of cells on all `diagonals`."""
    return sum(count for _, count in diagonals(*shape, reach))


def blocks(shape: tuple[int, int], reach: Reach | None) -> list[tuple[slice, slice]]:
    """Return rows and columns of blocks that cover all `diagonals`, and few other cells."""
    rows, columns = shape
    if reach is None:
        return [(slice(rows), slice(columns))]
    found: list[tuple[slice, slice]] = []
    first, low, high, inside = 0, columns, 0, 0
    for i, (begin, end) in enumerate(reach):
        begin, end = max(int(begin), 0), min(int(end) + 1, columns)
        if begin >= end:
            continue
        cells = (i + 1 - first) * (max(high, end) - min(low, begin))
        if inside == 0 or cells > _WASTE * (inside + end - begin):
            if inside > 0:
                found.append((slice(first, i), slice(low, high)))
            first, low, high, inside = i, begin, end, 0
        low, high, inside = min(low, begin), max(high, end), inside + end - begin
    if inside > 0:
        found.append((slice(first, i + 1), slice(low, high)))
    return found


_WASTE = 1.15
"""Largest ratio of the cells of a block to the needed cells, for blocks of more than one row. Such
blocks make products fewer and larger."""


def _border(strip: Strip, after: Strip) -> tuple[Tensor, Tensor]:
    """Return the flat index of the next strip's row 0 in this field, and a mask of those inside."""
    columns = strip.shape[1]
    lanes = torch.arange(len(strip.rows), device=strip.rows.device)
    column = torch.arange(after.shape[1] + 1, device=strip.rows.device)[:, None]
    column = column + (after.first - strip.first)
    inside = column <= columns
    index = (strip.rows * (columns + 1) + column.clamp(max=columns)) * len(lanes) + lanes
    return index, inside


def _last(strip: Strip, y_lengths: Tensor) -> Tensor:
    """Return the flat index of each lane's last cell in the field of the last strip."""
    lanes = torch.arange(len(y_lengths), device=y_lengths.device)
    cell = strip.rows * (strip.shape[1] + 1) + y_lengths - strip.first
    return cell * len(lanes) + lanes


def edges(
    lanes: Strip,
    x_lengths: Int[Tensor, "#n"],
    y_lengths: Int[Tensor, "#n"],
    band: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, " rows #n"], Float[Tensor, " rows #n"]]:
    """Return the first and last column of each lane's band in every row of a strip.

    Columns are counted from the strip's own first, and computed in float64. Columns outside the
    strip are -1, or one past its last. If all lanes are alike, the lengths of one lane are enough.

    Cell (i, j), counted from 0, of a lane of lengths (t, l) lies in the band when
    ``|i/(t-1) - j/(l-1)| <= max(band, 1/(2·(min(t, l) - 1)))``. The second is the smallest width at
    which the corner can always be reached. ``band=1`` allows every cell.

    Args:
        lanes: the strip of these lanes.
        x_lengths: t of each lane.
        y_lengths: l of each lane.
        band: its width.
        dtype: dtype of the result. Every number of a column is exact in float32.
    """
    device = x_lengths.device
    x_lengths, y_lengths, start, first = (
        side.to(exact_on(device)) for side in (x_lengths, y_lengths, lanes.start, lanes.first)
    )
    t, length = (x_lengths - 1).double(), (y_lengths - 1).double()
    i = torch.arange(lanes.shape[0], device=t.device)[:, None] + start
    # The inequality is multiplied out, so that lengths of 1 need few special cases and integers
    # compare exactly.
    width = torch.maximum(band * t * length, torch.maximum(t, length) / 2) * (1 + 1e-9)
    # A single step of x is compared with every step of y, for which (l - 1) / 2 over 1/4 is wide
    # enough.
    t = t.clamp(min=0.25)
    low = ((i * length - width) / t).ceil_() - first
    high = torch.minimum(((i * length + width) / t).floor_(), length) - first
    low, high = (side.clamp_(-1, lanes.shape[1]).to(dtype) for side in (low, high))
    return low.to(device), high.to(device)


def reach_of(low: Float[Tensor, "rows n"], high: Float[Tensor, "rows n"]) -> Reach:
    """Return the first and last column over the `edges` of all lanes."""
    return list(zip(low.amin(1).tolist(), high.amax(1).tolist(), strict=True))


def confine(
    rates: Float[Tensor, "rows columns n"],
    low: Float[Tensor, " rows #n"],
    high: Float[Tensor, " rows #n"],
    spare: Tensor | None = None,
) -> None:
    """Close the cells outside each lane's `edges` to all paths: their rates become about `NEVER`.

    `spare` is memory of shape (rows, columns, number of edges).
    """
    # Every column number, and every half-integer, is exact in this dtype.
    middle, half = (
        torch.add(high, low, alpha=sign).to(rates.dtype)[:, None] / 2 for sign in (1, -1)
    )
    j = torch.arange(rates.shape[1], device=rates.device, dtype=rates.dtype)[:, None]
    # Masking would take many times as long as this sum.
    beyond = torch.sub(middle, j, out=spare).abs_()
    torch.sub(half, beyond, out=beyond).clamp_(-1, 0)
    rates.add_(beyond, alpha=-NEVER)


def log_paths(
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
    band: float | None,
    dtype: torch.dtype,
) -> Float[Tensor, "n"]:
    """Return ``log2 N(t, l, band) - λ(t + l)`` for the number N of paths of each lane.

    Without a band, N is a Delannoy number, ``sum_k C(t-1,k) C(l-1,k) 2^k``. With one, it comes from
    this module's recursion with zero cost, run once for every distinct pair of lengths; recent
    results are remembered. Both are computed in double precision on the CPU, whatever the device,
    and then rounded to `dtype`.
    """
    span = int(y_lengths.max()) + 1
    pairs, where = torch.unique(x_lengths * span + y_lengths, return_inverse=True)
    lengths = [divmod(pair, span) for pair in pairs.tolist()]
    counts = _log_delannoy(lengths) if band is None else _remembered(lengths, band)
    return torch.tensor(counts, dtype=dtype).to(pairs.device)[where]


def _log_delannoy(lengths: list[tuple[int, int]]) -> list[float]:
    """Return `log_paths` without a band for distinct pairs of lengths."""
    longest, most = (max(side) for side in zip(*lengths, strict=True))
    logs = np.array([math.lgamma(n) / math.log(2) for n in range(1, max(longest, most) + 1)])
    found: list[float] = []
    for first in range(0, len(lengths), _PAIRS_AT_ONCE):
        t, length = np.array(lengths[first : first + _PAIRS_AT_ONCE]).T
        m, n = t[:, None] - 1, length[:, None] - 1
        k = np.arange(min(t.max(), length.max()))
        # log2 of C(m, k) C(n, k) 2^k
        terms = logs[m] - logs[np.maximum(m - k, 0)] + logs[n] - logs[np.maximum(n - k, 0)]
        terms += k - 2 * logs[k]
        terms[k > np.minimum(m, n)] = -np.inf
        peak = terms.max(1)
        totals = np.exp2(terms - peak[:, None]).sum(1)
        found += (np.log2(totals) + peak - GROWTH * (t + length)).tolist()
    return found


_PAIRS_AT_ONCE, _CELLS_AT_ONCE = 2**10, 2**22

_IN_BANDS: dict[tuple[int, int, float], Any] = {}
_REMEMBERED = 2**17


def _remembered(lengths: list[tuple[int, int]], band: float) -> list[float]:
    """Return `log_paths` in a band for distinct pairs of lengths."""
    known: dict[Any, Any] = {pair: _IN_BANDS.get((*pair, band)) for pair in lengths}
    missing = sorted((pair for pair in lengths if known[pair] is None), reverse=True)
    if missing:
        sizes = split_by_band([t for t, _ in missing], band)
        for part in torch.tensor(missing, device="cpu").split(sizes):
            cells = int(part.prod(1).max())
            for some in part.split(max(1, min(_PAIRS_AT_ONCE, _CELLS_AT_ONCE // cells))):
                counts = _log_paths_in_band(some[:, 0], some[:, 1], band).tolist()
                known.update(zip(map(tuple, some.tolist()), counts, strict=True))
        if len(_IN_BANDS) + len(missing) > _REMEMBERED:
            _IN_BANDS.clear()
        _IN_BANDS.update({(*pair, band): count for pair, count in known.items()})
    return [known[pair] for pair in lengths]


def _log_paths_in_band(t: Tensor, length: Tensor, band: float) -> Tensor:
    lanes = strips(t, length, band)

    def sweep(k: int) -> Sweep:
        rows, columns = lanes[k].shape
        cells = torch.full(
            (rows + 1, columns + 1, len(t)), -GROWTH, dtype=torch.float64, device=t.device
        )
        low, high = edges(lanes[k], t, length, band, cells.dtype)
        confine(cells[1:, 1:], low, high)
        reach = reach_of(low, high)
        return Sweep(cells, reach, cells.new_empty(ways_at_once((rows, columns), reach) * len(t)))

    return forward(lanes, sweep, length)
