r"""The recursion without a logarithm, in ratios of the weights of neighbouring cells.

With w the weight of all paths into a cell and ρ = exp(rate), ``recursion`` computes

.. math:: w_{tl} = ρ_{tl} (w_{t-1,l} + w_{t,l-1} + ρ_{tl} w_{t-1,l-1}) .

Weights leave the range of any floating-point type after a few steps; ratios of neighbours seldom
do. With ``across = w[t,l] / w[t,l-1]`` and ``down = w[t,l] / w[t-1,l]``, division by w[t-1,l-1]
gives

.. math::
    q = \mathrm{across}_{t-1,l} + \mathrm{down}_{t,l-1} + ρ_{tl}, \qquad
    \mathrm{down}_{tl} = \frac{ρ q}{\mathrm{across}_{t-1,l}}, \qquad
    \mathrm{across}_{tl} = \frac{ρ q}{\mathrm{down}_{t,l-1}} ,

and the three terms of q, divided by q, are the shares of the three ways into the cell. All terms
are positive, so no digits cancel, and logarithms are taken along one row only.

Range: a ratio is at least ρ, and ρq is at least ρ², which `fits` keeps in range. Ratios have no
upper bound: they overflow if two neighbouring columns differ strongly for many steps. An infinite
ratio turns its neighbours' ratios into NaN, those turn theirs, and so on to the last cell. Hence a
result is either correct or not finite, and the caller then uses ``recursion``.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq_temporal.recursion import GROWTH, LEAST, diagonals

SCALE = 2.0**40
"""Size of the largest gradient in `Kept.backward`: divided by a large q, it must not vanish."""


def fits(gamma: float, dtype: torch.dtype) -> bool:
    """Return True if the square of every cell's weight is in range, for cosines within ±1."""
    largest = 1 / (gamma * math.log(2)) + GROWTH
    return 2 * largest < -math.log2(torch.finfo(dtype).tiny) - 2


class InPlace:
    """The weights of all paths, to compute only their sum: ratios across replace the weights.

    Attributes:
        weights: (T, L, n), exp(rate) of each cell of n pairs ("lanes"); fill them before `forward`,
            which overwrites them.
    """

    def __init__(self, weights: Float[Tensor, "T L n"]) -> None:
        self.weights = weights
        steps, others, lanes = weights.shape
        self._down = weights.new_empty(steps, lanes)  # only the last one of each row
        room = weights.new_empty(min(steps, others), lanes)
        self._views = []
        for at in _diagonals(weights):
            down = self._down[at.row : at.row + at.count]
            self._views.append((at(0), at(0, above=1), down, room[: at.count]))

    def forward(
        self, x_lengths: Int[Tensor, "n"], y_lengths: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Return log2 of the total weight of all paths, or a number that is not finite.

        Args:
            x_lengths: t of each lane, 1 <= t <= T.
            y_lengths: l of each lane, 1 <= l <= L.

        Paths go from the first cell of a lane to its last. Cost: five operations of one pass each;
        memory O(T·n).
        """
        edge = self.weights[:, 0].log2()
        self._down.copy_(self.weights[:, 0])
        for cells, above, left, total in self._views:
            torch.add(above, left, out=total)
            total.add_(cells).mul_(cells)
            torch.div(total, left, out=cells)
            torch.div(total, above, out=left)
        return _sum_of_logs(edge, self.weights, x_lengths, y_lengths)


class Kept:
    """The weights of all paths, and the gradient of their sum.

    Attributes:
        weights: as in `InPlace`, but `forward` leaves them unchanged.
    """

    def __init__(self, planes: Float[Tensor, "3 T L n"]) -> None:
        self.weights, self._across, self._down = planes
        _, steps, others, lanes = planes.shape
        room = planes.new_empty(min(steps, others), lanes)
        self._views = []
        for at in _diagonals(planes):
            # The cells of the last column and row do not have a cell diagonally after them.
            inner = slice(int(at.number >= others - 2), at.count - int(at.number >= steps - 2))
            some = inner.start < inner.stop
            self._views.append(
                _Views(
                    total=room[: at.count],
                    weights=at(0),
                    across=at(1),
                    down=at(2),
                    across_above=at(1, above=1),
                    down_left=at(2, left=1),
                    down_above=at(2, above=1),
                    sources=at.pair(at(0), at(2, left=1)),
                    inner=at(2)[inner] if some else None,
                    after=at(0, above=-1, left=-1, cells=inner) if some else None,
                )
            )

    def forward(
        self, x_lengths: Int[Tensor, "n"], y_lengths: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Do what `InPlace.forward` does, at the same cost, and keep all ratios for `backward`."""
        edge = self.weights[:, 0].log2()
        self._across[0] = self.weights[0]
        self._down[:, 0] = self.weights[:, 0]
        for at in self._views:
            total, weights = at.total, at.weights
            torch.add(at.across_above, at.down_left, out=total)
            total.add_(weights).mul_(weights)
            torch.div(total, at.down_left, out=at.across)
            torch.div(total, at.across_above, out=at.down)
        return _sum_of_logs(edge, self._across, x_lengths, y_lengths)

    def backward(
        self, grad: Float[Tensor, "n"], x_lengths: Int[Tensor, "n"], y_lengths: Int[Tensor, "n"]
    ) -> Float[Tensor, "T L n"]:
        """Return the gradient of ``grad · forward(...)`` to the rates, using up weights and ratios.

        It is precise to `LEAST`, where the largest entry of `grad` is about `SCALE`. It is not
        finite if a ratio overflowed, even beyond a lane's last cell. Cost: eight operations of one
        pass each.
        """
        # A ratio is read once, at the cell that it leads to. After that, its memory collects the
        # gradient that is sent back to its own cell, first from the right; the gradient that goes
        # back diagonally waits in the memory of the weight that it came from.
        arrived, weights = self._down, self.weights
        steps, others, lanes = arrived.shape
        least = grad * LEAST
        arrived[0] = 0.0
        arrived[:, -1] = 0.0
        flat = arrived.view(-1)
        lane = torch.arange(lanes, device=arrived.device)
        last = ((x_lengths - 1) * others + y_lengths - 1) * lanes + lane
        # The anti-diagonal of the loop in which a lane ends, or -1.
        inside = (x_lengths > 1) & (y_lengths > 1)
        ends = torch.where(inside, x_lengths + y_lengths - 4, -1)
        order = ends.argsort(stable=True)
        counts = torch.bincount(ends + 1, minlength=len(self._views) + 1).tolist()
        _, *places = last[order].split(counts)
        _, *grads = grad[order].split(counts)
        for at, place, arriving in reversed(list(zip(self._views, places, grads, strict=True))):
            here, part = at.down, at.total
            if at.inner is not None:
                at.inner.add_(at.after)
            if len(place) > 0:
                flat.index_add_(0, place, arriving)
            torch.add(at.across_above, at.down_left, out=part)
            torch.div(here, part.add_(at.weights), out=part)
            torch.addcmul(least, at.sources, part, out=at.sources)
            at.down_above.addcmul_(part, at.across_above)
            # A diagonal step counts its cell twice.
            here.add_(at.weights)
        # From the first row and column, the only way back is along them.
        arrived[0, :-1] += weights[1, 1:] if steps > 1 else 0.0
        arrived[1:-1, 0] += weights[2:, 1] if others > 1 else 0.0
        flat.index_add_(0, last, grad.masked_fill(inside, 0.0))
        for edge in (arrived[0], arrived[:, 0]):
            edge.copy_(edge.flip(0).cumsum(0).flip(0))
        arrived[0, 0] *= 2
        return arrived


class _Views(NamedTuple):
    """The views of one anti-diagonal of `Kept`; weights, across and down belong to its cells."""

    total: Tensor
    weights: Tensor
    across: Tensor
    down: Tensor
    across_above: Tensor  # in the cells above
    down_left: Tensor
    down_above: Tensor
    sources: Tensor  # weights and down_left
    inner: Tensor | None  # the part of down with a cell diagonally after it
    after: Tensor | None  # the weights of these cells


class _Diagonal:
    """An anti-diagonal of memory (T, L, n), or of several planes of it, and its neighbours."""

    def __init__(self, memory: Tensor, number: int, corner: int, count: int) -> None:
        steps, self._others, self._lanes = memory.shape[-3:]
        self.number, self.count = number, count
        self.row = 1 + corner // self._others  # the row of its first cell
        self._memory, self._plane = memory, steps * self._others
        # The offset of the first cell, counted in cells.
        self._first = memory.storage_offset() // self._lanes + corner + self._others + 1

    def __call__(
        self, plane: int, *, above: int = 0, left: int = 0, cells: slice | None = None
    ) -> Tensor:
        """Return (count, n) of a plane, or a part of it, shifted by `above` and `left` cells."""
        start, stop = (cells.start, cells.stop) if cells is not None else (0, self.count)
        first = self._first + plane * self._plane - above * self._others - left
        stride = self._others - 1
        return self._memory.as_strided(
            (stop - start, self._lanes),
            (stride * self._lanes, 1),
            (first + start * stride) * self._lanes,
        )

    def pair(self, one: Tensor, other: Tensor) -> Tensor:
        """Return both as one tensor (2, count, n)."""
        apart = other.storage_offset() - one.storage_offset()
        return one.as_strided((2, *one.shape), (apart, *one.stride()))


def _diagonals(memory: Tensor) -> Iterator[_Diagonal]:
    """Yield the anti-diagonals of all cells except the first row and column."""
    steps, others = memory.shape[-3:-1]
    if min(steps, others) == 1:
        return
    for number, (corner, count) in enumerate(diagonals(steps - 1, others - 1)):
        yield _Diagonal(memory, number, corner, count)


def _sum_of_logs(
    edge: Float[Tensor, "T n"],
    across: Float[Tensor, "T L n"],
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """Return the log weight of the last cells.

    It adds up ratios down the first column, and then along the last row. Its rounding error, in the
    units of a score, does not grow with the lengths: torch sums pairwise, and a score divides the
    sum by t + l.
    """
    others, lanes = across.shape[1:]
    lane = torch.arange(lanes, device=across.device)
    column = torch.arange(others, device=across.device)[:, None]
    row = across[x_lengths - 1, column, lane].log2_()
    row = row.masked_fill_((column == 0) | (column >= y_lengths), 0.0)
    # A single path leads into the first row and column. The terms of the sum may cancel.
    step = torch.arange(len(edge), device=edge.device)[:, None]
    column_sum = torch.where(step < x_lengths, edge, 0.0).sum(0)
    # The first cell counts twice.
    return edge[0] + (column_sum + row.sum(0))
