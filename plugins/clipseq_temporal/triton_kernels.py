r"""Triton kernels of `clipseq_temporal.scores.temporal_scores`.

These kernels process as many pairs at a time as `WORKSPACE` holds, and pass their cells on in
device memory:

1. `_rates` computes a tile of ⟨x, y⟩ on tensor cores, as rates (see `clipseq_temporal.recursion`),
   and stores it by anti-diagonals: cell (i, j) in row i + j and column j. The store is scattered,
   so that the recursion can read whole rows, again and again.
2. `_weights` runs the recursion in registers, with a warp per pair and lanes along the shorter
   side. A step needs the last value of its left neighbour: four shuffles per lane, no barrier. Each
   step of a pair depends on the previous one. This latency is hidden by the warps of other pairs,
   as many as fit on a multiprocessor, and the next row is read while this one is computed. In
   backward it stores the shares of the ways into each cell: from above (in place of the rate, which
   is no longer needed) and from the left; the rest, up to 1, is the diagonal share.
3. `_alignment` goes backwards along the same rows, without transcendentals. It overwrites the
   shares from above with the expected alignment.
4. `_gradient` multiplies alignment and steps on tensor cores. One program per block of x_i loops
   over the j of the tile, and one per block of y_j over its i, so no two programs add to the same
   number, and the order of every sum is fixed. Both factors are split into two halves (see
   `clipseq.engine.halves`), the alignment after scaling to the largest gradient of its sequence.

If the shorter side has more than 128 steps, it takes a warp for each 128 of them, and a step then
needs two barriers. In forward, each cell takes 4 bytes, which are written once and read once; in
backward it takes twice as many, and 9 such passes. Apart from that, only the scores, the counts and
the widths of bands grow with B·C.

The number of paths is counted by the same recursion with zero cost. float32 is precise enough for
this count and for the weights: both are relative to the growth of the number of paths, and both are
rounded alike.
"""

import math
from collections.abc import Iterator
from typing import no_type_check

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor

from clipseq.engine import FEATURES, halves, jit_for_any, products, terms, tile_shape
from clipseq_temporal.recursion import GROWTH

WORKSPACE = 2**29
"""Largest number of bytes for the cells of a tile of pairs."""

_LANES = 2**10
"""Largest number of steps of the shorter side, whose lanes are the threads of one program."""

_NEVER = tl.constexpr(-1e30)
"""Log weight of a cell that no path reaches; finite, so that differences are never NaN."""


def supported(x: Tensor, y: Tensor) -> bool:
    """Return True if the kernels take sequences with this number of steps."""
    lengths = x.shape[1], y.shape[1]
    return min(lengths) <= _LANES and 8 * _cells(max(lengths), min(lengths)) <= 2**29


def forward(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, gamma: float, band: float | None
) -> Tensor:
    """Return the (B, C) scores of unit steps x (B, T, D) and y (C, L, D), packed to the front."""
    if x.shape[1] < y.shape[1]:
        return forward(y, x, y_lengths, x_lengths, gamma, band).mT.contiguous()
    with torch.cuda.device_of(x):
        everything = _pairs(x, y, x_lengths, y_lengths, gamma, band)
        weights, counts = (x.new_empty(len(x), len(y)) for _ in range(2))
        for rows, columns, tile in everything.tiles(1):
            cells = tile.rates()
            tile.weights(cells, out=weights[rows, columns])
            del cells  # before the next tile allocates its own
        everything.weights(None, out=counts)
        # 1 - (softDTW(-s) + t + l + γ log N) / (t + l)
        return gamma * math.log(2) * (weights - counts) / (x_lengths[:, None] + y_lengths)


def backward(
    grad: Tensor,
    scores: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    gamma: float,
    band: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to x and y, computing every tile again from inputs and scores."""
    if x.shape[1] < y.shape[1]:
        grad_y, grad_x = backward(grad.mT, scores.mT, y, x, y_lengths, x_lengths, gamma, band)
        return grad_x, grad_y
    with torch.cuda.device_of(x):
        grad = grad / (x_lengths[:, None] + y_lengths)
        grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
        for rows, columns, tile in _pairs(x, y, x_lengths, y_lengths, gamma, band).tiles(2):
            # With the score subtracted, logarithms along the paths that matter stay small, and
            # their differences precise; a constant in every rate adds the same to all paths.
            cells = tile.rates(scores[rows, columns])
            from_left = torch.empty_like(cells)
            tile.weights(cells, from_left)
            tile.alignment(cells, from_left)
            tile.add_gradient(cells, grad[rows, columns], grad_x[rows], grad_y[columns])
            del cells, from_left
        return grad_x, grad_y


def _cells(steps: int, lanes: int) -> int:
    """Return the number of elements in the anti-diagonals of a pair."""
    return (steps + lanes - 1) * _row(lanes)


def _row(lanes: int) -> int:
    """Return the distance from one anti-diagonal to the next, in whole sectors of memory."""
    return triton.cdiv(lanes, 16) * 16


def _pairs(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, gamma: float, band: float | None
) -> "_Pairs":
    t, length = x_lengths.contiguous(), y_lengths.contiguous()
    widths = None
    if band is not None:
        # This is the band of `recursion.edges`; cells are compared in integers.
        m, n = (t - 1).double()[:, None], (length - 1).double()
        width = torch.maximum(band * m * n, torch.maximum(m, n) / 2)
        widths = (width * (1 + 1e-9)).floor().int()
    return _Pairs(halves(x), halves(y), t, length, widths, 1 / (gamma * math.log(2)))


@attrs.frozen(eq=False)
class _Pairs:
    """All pairs of some x and some y, where x are the longer side."""

    x: tuple[Tensor, Tensor]  # halves (B, T, D')
    y: tuple[Tensor, Tensor]  # halves (C, L, D')
    t: Tensor
    l: Tensor  # noqa: E741
    widths: Tensor | None
    scale: float

    def tiles(self, arrays: int) -> Iterator[tuple[slice, slice, "_Pairs"]]:
        """Yield tiles of as many pairs as the workspace holds with `arrays` elements per cell."""
        pairs = max(1, WORKSPACE // (4 * arrays * self._size()))
        height, width = tile_shape(len(self.t), len(self.l), pairs)
        for row in range(0, len(self.t), height):
            for column in range(0, len(self.l), width):
                i, j = slice(row, row + height), slice(column, column + width)
                yield (
                    i,
                    j,
                    _Pairs(
                        (self.x[0][i], self.x[1][i]),
                        (self.y[0][j], self.y[1][j]),
                        self.t[i],
                        self.l[j],
                        None if self.widths is None else self.widths[i, j],
                        self.scale,
                    ),
                )

    def rates(self, less: Tensor | None = None) -> Tensor:
        """Return the rates of all cells, by anti-diagonals, one pair after the other.

        `less` (b, c), if given, is subtracted from the cosines of each pair.
        """
        count = len(self.t) * len(self.l)
        # Lanes beyond the end of a row read the next row; those of the last pair read extra
        # elements.
        cells = self.t.new_empty(count * self._size() + 2 * _LANES, dtype=torch.float32)
        steps, length = self.x[0].shape[1], self.y[0].shape[1]
        block_x = min(128, max(16, triton.next_power_of_2(steps)))
        block_y = min(128, max(16, triton.next_power_of_2(length)))
        _rates[(count, triton.cdiv(steps, block_x), triton.cdiv(length, block_y))](
            cells,
            *self.x,
            *self.y,
            cells if less is None else less,
            *((0, 0) if less is None else less.stride()),
            *self._pair(),
            self._size(),
            _row(length),
            steps,
            length,
            self.x[0].shape[2],
            self.scale,
            GROWTH,
            TERMS=terms(),
            LESS=less is not None,
            BANDED=self.widths is not None,
            BLOCK_X=block_x,
            BLOCK_Y=block_y,
            BLOCK_D=FEATURES,
            num_warps=8,
            num_stages=3,
        )
        return cells

    def weights(
        self, cells: Tensor | None, from_left: Tensor | None = None, out: Tensor | None = None
    ) -> None:
        """Write log2 of the total weight of each pair's paths to `out`, or shares to the cells.

        Without cells, the cost is zero everywhere.
        """
        anything = self.t
        _weights[(len(self.t) * len(self.l),)](
            anything if cells is None else cells,
            anything if from_left is None else from_left,
            anything if out is None else out,
            0 if out is None else out.stride(0),
            *self._pair(),
            self._size(),
            _row(self.y[0].shape[1]),
            GROWTH,
            FREE=cells is None,
            SHARES=from_left is not None,
            BANDED=self.widths is not None,
            **self._lanes(),
        )

    def alignment(self, cells: Tensor, from_left: Tensor) -> None:
        """Overwrite the shares in `cells` with the expected alignment."""
        _alignment[(len(self.t) * len(self.l),)](
            cells,
            from_left,
            *self._pair(),
            self._size(),
            _row(self.y[0].shape[1]),
            BANDED=self.widths is not None,
            **self._lanes(),
        )

    def add_gradient(self, cells: Tensor, grad: Tensor, grad_x: Tensor, grad_y: Tensor) -> None:
        """Add the products of alignment and steps, weighted by `grad` (b, c)."""
        size, row, columns = self._size(), _row(self.y[0].shape[1]), len(self.l)
        widths = None if self.widths is None else self.widths
        _add_products(
            grad_x,
            grad,
            self.y,
            self.t,
            self.l,
            widths,
            cells,
            (columns * size, size, row, row + 1),
        )
        widths = None if self.widths is None else self.widths.mT
        _add_products(
            grad_y,
            grad.mT,
            self.x,
            self.l,
            self.t,
            widths,
            cells,
            (size, columns * size, row + 1, row),
        )

    def _size(self) -> int:
        return _cells(self.x[0].shape[1], self.y[0].shape[1])

    def _pair(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Return arguments of kernels: lengths, widths, their stride, and the number of columns."""
        widths = self.t if self.widths is None else self.widths
        return self.t, self.l, widths, widths.stride(0), len(self.l)

    def _lanes(self) -> dict[str, int]:
        block = max(16, triton.next_power_of_2(self.y[0].shape[1]))
        return {"BLOCK": block, "num_warps": max(1, block // 128)}


def _add_products(
    to: Tensor,
    grad: Tensor,
    other: tuple[Tensor, Tensor],
    own_lengths: Tensor,
    other_lengths: Tensor,
    widths: Tensor | None,
    cells: Tensor,
    strides: tuple[int, int, int, int],
) -> None:
    """Add to `to`, the gradient (n, S, D) of one side; cells (n, m, S, S') have `strides`."""
    count, steps, features = to.shape
    padded = other[0].shape[2]
    # With this factor, the halves lose less than the rounding error of float32 for the largest
    # entry.
    largest = grad.abs().amax(1).clamp(min=torch.finfo(grad.dtype).tiny)
    share = grad / largest[:, None]
    block = min(64, max(16, triton.next_power_of_2(steps)))
    block_d = min(128, triton.next_power_of_2(padded))
    bands = own_lengths if widths is None else widths
    _gradient[(count, triton.cdiv(steps, block), triton.cdiv(features, block_d))](
        to,
        largest,
        share,
        *other,
        own_lengths,
        other_lengths,
        bands,
        cells,
        len(other_lengths),
        steps,
        other[0].shape[1],
        features,
        padded,
        *to.stride(),
        *share.stride(),
        *(bands.stride() if widths is not None else (0, 0)),
        *strides,
        TERMS=terms(),
        BANDED=widths is not None,
        BLOCK_A=block,
        BLOCK_B=32,
        BLOCK_D=block_d,
        num_warps=4,
        num_stages=3,
    )


@jit_for_any(sizes=["columns", "steps", "length"], strides=["less_0", "less_1", "widths_stride"])
@no_type_check
def _rates(
    cells,
    x_high,
    x_low,
    y_high,
    y_low,
    less,
    less_0,
    less_1,
    x_lengths,
    y_lengths,
    widths,
    widths_stride,
    columns,
    size,
    row,
    steps,
    length,
    features,
    scale,
    growth,
    TERMS: tl.constexpr,
    LESS: tl.constexpr,
    BANDED: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    i, j = pair // columns, pair % columns
    t, l = tl.load(x_lengths + i).to(tl.int32), tl.load(y_lengths + j).to(tl.int32)  # noqa: E741
    a_first, b_first = tl.program_id(1) * BLOCK_X, tl.program_id(2) * BLOCK_Y
    if a_first >= t or b_first >= l:
        return
    if BANDED:
        width = tl.load(widths + i * widths_stride + j)
        lowest = a_first * (l - 1) - (b_first + BLOCK_Y - 1) * (t - 1)
        highest = (a_first + BLOCK_X - 1) * (l - 1) - b_first * (t - 1)
        if lowest > width or highest < -width:
            return
    a, b = a_first + tl.arange(0, BLOCK_X), b_first + tl.arange(0, BLOCK_Y)
    a_real, b_real = a < t, b < l
    tile = products(
        x_high + i * steps * features,
        x_low + i * steps * features,
        a,
        a_real,
        y_high + j * length * features,
        y_low + j * length * features,
        b,
        b_real,
        features,
        TERMS,
        BLOCK_X,
        BLOCK_Y,
        BLOCK_D,
    )
    if LESS:
        tile -= tl.load(less + i * less_0 + j * less_1)
    to = cells + pair * size + (a[:, None] + b[None, :]) * row + b[None, :]
    tl.store(to, tile * scale - growth, mask=a_real[:, None] & b_real[None, :])


@triton.jit
@no_type_check
def _inside(k, lane, t, l, width, BANDED: tl.constexpr):  # noqa: E741
    """Return True for the lanes of anti-diagonal k whose cells a path may pass."""
    step = k - lane
    real = (lane < l) & (step >= 0) & (step < t)
    if BANDED:
        real = real & (tl.abs(step * (l - 1) - lane * (t - 1)) <= width)
    return real


@jit_for_any(sizes=["columns"], strides=["out_stride", "widths_stride"])
@no_type_check
def _weights(
    cells,
    from_left,
    out,
    out_stride,
    x_lengths,
    y_lengths,
    widths,
    widths_stride,
    columns,
    size,
    row,
    growth,
    FREE: tl.constexpr,
    SHARES: tl.constexpr,
    BANDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    i, j = pair // columns, pair % columns
    t, l = tl.load(x_lengths + i).to(tl.int32), tl.load(y_lengths + j).to(tl.int32)  # noqa: E741
    width = 0
    if BANDED:
        width = tl.load(widths + i * widths_stride + j)
    lane = tl.arange(0, BLOCK)
    left_of = tl.maximum(lane - 1, 0)
    cells += pair * size
    from_left += pair * size
    rate = tl.full((BLOCK,), 0.0, tl.float32) - growth
    coming = rate
    if not FREE:
        coming = tl.load(cells + lane)
    above = tl.full((BLOCK,), _NEVER, tl.float32)
    # Paths enter the first cell by a diagonal step from outside.
    corner = tl.where(lane == 0, 0.0, _NEVER)
    for k in range(t + l - 1):
        real = _inside(k, lane, t, l, width, BANDED)
        if not FREE:
            rate = tl.where(real, coming, 0.0)
            coming = tl.load(cells + tl.minimum(k + 1, t + l - 2) * row + lane)
        left = tl.where(lane == 0, _NEVER, tl.gather(above, left_of, 0))
        diagonal = corner + rate
        peak = tl.maximum(tl.maximum(above, left), diagonal)
        down, right = tl.exp2(above - peak), tl.exp2(left - peak)
        total = down + right + tl.exp2(diagonal - peak)
        if SHARES:
            tl.store(cells + k * row + lane, down / total, mask=real)
            tl.store(from_left + k * row + lane, right / total, mask=real)
        corner = left
        above = tl.where(real, tl.log2(total) + peak + rate, _NEVER)
    if not SHARES:
        tl.store(out + i * out_stride + j, tl.sum(tl.where(lane == l - 1, above, 0.0), 0))


@jit_for_any(sizes=["columns"], strides=["widths_stride"])
@no_type_check
def _alignment(
    cells,
    from_left,
    x_lengths,
    y_lengths,
    widths,
    widths_stride,
    columns,
    size,
    row,
    BANDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    i, j = pair // columns, pair % columns
    t, l = tl.load(x_lengths + i).to(tl.int32), tl.load(y_lengths + j).to(tl.int32)  # noqa: E741
    width = 0
    if BANDED:
        width = tl.load(widths + i * widths_stride + j)
    lane = tl.arange(0, BLOCK)
    right_of = tl.minimum(lane + 1, BLOCK - 1)
    cells += pair * size
    from_left += pair * size
    last = t + l - 2
    coming_down = tl.load(cells + last * row + lane)
    coming_right = tl.load(from_left + last * row + lane)
    # What later cells send: to the cell above, to the left, and to the corner (one row later).
    upwards = tl.where(lane == l - 1, 1.0, 0.0)
    leftwards = tl.zeros((BLOCK,), tl.float32)
    cornerwards = tl.zeros((BLOCK,), tl.float32)
    for done in range(last + 1):
        k = last - done
        real = _inside(k, lane, t, l, width, BANDED)
        down, right = tl.where(real, coming_down, 0.0), tl.where(real, coming_right, 0.0)
        earlier = tl.maximum(k - 1, 0) * row + lane
        coming_down, coming_right = tl.load(cells + earlier), tl.load(from_left + earlier)
        arrived = tl.gather(leftwards, right_of, 0)
        arrived = upwards + tl.where(lane == BLOCK - 1, 0.0, arrived)
        arrived = tl.where(real, arrived, 0.0)
        diagonal = 1.0 - down - right
        # Write zero outside the band, since these cells are multiplied too.
        cell = _inside(k, lane, t, l, width, False)
        tl.store(cells + k * row + lane, arrived * (1.0 + diagonal), mask=cell)
        upwards = arrived * down
        leftwards = arrived * right + cornerwards
        cornerwards = arrived * diagonal


@jit_for_any(
    sizes=["others", "steps", "length"], strides=["share_0", "share_1", "widths_0", "widths_1"]
)
@no_type_check
def _gradient(
    to,
    largest,
    share,
    other_high,
    other_low,
    own_lengths,
    other_lengths,
    widths,
    cells,
    others,
    steps,
    length,
    features,
    padded,
    to_0,
    to_1,
    to_2,
    share_0,
    share_1,
    widths_0,
    widths_1,
    cells_0,
    cells_1,
    cells_2,
    cells_3,
    TERMS: tl.constexpr,
    BANDED: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    a_first = tl.program_id(1) * BLOCK_A
    t = tl.load(own_lengths + i).to(tl.int32)
    if a_first >= t:
        return
    a = a_first + tl.arange(0, BLOCK_A)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    a_real = a < t
    total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    for number in range(others):
        j = tl.cast(number, tl.int64)
        l = tl.load(other_lengths + j).to(tl.int32)  # noqa: E741
        weight = tl.load(share + i * share_0 + j * share_1)
        first, stop = 0, l
        if BANDED:
            # |a·(l-1) - b·(t-1)| <= width for some a of the block.
            width = tl.load(widths + i * widths_0 + j * widths_1)
            if t > 1:
                first = tl.maximum(a_first * (l - 1) - width, 0) // (t - 1)
                a_last = tl.minimum(a_first + BLOCK_A, t) - 1
                stop = tl.minimum((a_last * (l - 1) + width) // (t - 1) + 1, l)
        of_pair = cells + i * cells_0 + j * cells_1
        for b_first in range(first, stop, BLOCK_B):
            b = b_first + tl.arange(0, BLOCK_B)
            b_real = b < stop
            at = of_pair + a[:, None] * cells_2 + b[None, :] * cells_3
            alignment = tl.load(at, mask=a_real[:, None] & b_real[None, :], other=0.0) * weight
            high = alignment.to(tl.float16)
            at = (j * length + b)[:, None] * padded + d[None, :]
            inside = b_real[:, None] & (d < padded)[None, :]
            steps_high = tl.load(other_high + at, mask=inside, other=0.0)
            total = tl.dot(high, steps_high, total)
            if TERMS == 3:
                low = (alignment - high.to(tl.float32)).to(tl.float16)
                steps_low = tl.load(other_low + at, mask=inside, other=0.0)
                total = tl.dot(high, steps_low, total)
                total = tl.dot(low, steps_high, total)
    at = to + i * to_0 + a[:, None].to(tl.int64) * to_1 + d[None, :] * to_2
    inside = a_real[:, None] & (d < features)[None, :]
    sum_so_far = tl.load(at, mask=inside, other=0.0)
    tl.store(at, sum_so_far + tl.load(largest + i) * total, mask=inside)
