r"""The recursion without a logarithm, in ratios of the weights of neighbouring cells.

With w the weight of all paths into a cell and ρ = exp(rate), ``recursion`` computes

.. math:: w_{tl} = ρ_{tl} (w_{t-1,l} + w_{t,l-1} + ρ_{tl} w_{t-1,l-1}) .

Weights leave any floating point's range within a few steps; ratios of neighbours seldom do. With
``across = w[t,l] / w[t,l-1]`` and ``down = w[t,l] / w[t-1,l]``, divided by w[t-1,l-1],

.. math::
    q = \mathrm{across}_{t-1,l} + \mathrm{down}_{t,l-1} + ρ_{tl}, \qquad
    \mathrm{down}_{tl} = \frac{ρ q}{\mathrm{across}_{t-1,l}}, \qquad
    \mathrm{across}_{tl} = \frac{ρ q}{\mathrm{down}_{t,l-1}} ,

and the three terms of q over q are the shares of the ways into the cell. All terms are positive:
no digit is lost, and a logarithm is taken along one row only.

Range: a ratio is at least ρ, and ρq at least ρ², which `fits` keeps in range. Ratios have no upper
bound: two neighbouring columns that differ much for many steps overflow. An infinite ratio makes
its neighbours' ratios NaN, these theirs, and so on to the last cell. Hence a result is either
right or not finite, and the caller then takes ``recursion``.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq_temporal.recursion import GROWTH, diagonals

SCALE = 2.0**40
"""Of the largest gradient in `backward`: one over a large q must not vanish."""


def fits(gamma: float, dtype: torch.dtype) -> bool:
    """Whether the square of every cell's weight can be represented, cosines being within ±1."""
    largest = 1 / (gamma * math.log(2)) + GROWTH
    return 2 * largest < -math.log2(torch.finfo(dtype).tiny) - 2


def forward(
    weights: Float[Tensor, "T L n"],
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
    ratios: tuple[Float[Tensor, "T L n"], Float[Tensor, "T L n"]] | None = None,
) -> Float[Tensor, "n"]:
    """Log2 of the total weight of all paths from the first cell to the last, or not finite.

    Args:
        weights: exp(rate) of each cell. Overwritten without `ratios`.
        x_lengths: t of each lane, 1 <= t <= T.
        y_lengths: l of each lane, 1 <= l <= L.
        ratios: memory, which holds across and down afterwards, for `backward`.

    Cost: five operations of one pass; memory O(T·n) without `ratios`.
    """
    steps, others, lanes = weights.shape
    # Into the first row and column leads a single path.
    edge = weights[:, 0].log2()
    if ratios is None:
        # In place: what is across replaces the weight, what is down only the last of each row.
        across, down = weights, weights[:, 0].clone()
    else:
        across, down = ratios
        across[0] = weights[0]
        down[:, 0] = weights[:, 0]
    stride, shift = (others - 1) * lanes, (others + 1) * lanes
    room = weights.new_empty(min(steps, others), lanes)
    bases = [cells.storage_offset() for cells in (weights, across, down)]
    for corner, count in diagonals(steps - 1, others - 1):
        shape, strides, offset = (count, lanes), (stride, 1), corner * lanes
        weight = weights.as_strided(shape, strides, bases[0] + offset + shift)
        from_above = across.as_strided(shape, strides, bases[1] + offset + lanes)
        if ratios is None:
            first = 1 + max(0, corner // others)
            from_left = to_right = down[first : first + count]
            below = weight
        else:
            from_left = down.as_strided(shape, strides, bases[2] + offset + others * lanes)
            to_right = down.as_strided(shape, strides, bases[2] + offset + shift)
            below = across.as_strided(shape, strides, bases[1] + offset + shift)
        total = room[:count]
        torch.add(from_above, from_left, out=total)
        total.add_(weight).mul_(weight)
        torch.div(total, from_left, out=below)
        torch.div(total, from_above, out=to_right)
    # Down the first column, then along the last row.
    lane = torch.arange(lanes, device=weights.device)
    column = torch.arange(others, device=weights.device)[:, None]
    row = across[x_lengths - 1, column, lane].log2_()
    row = row.masked_fill_((column == 0) | (column >= y_lengths), 0.0)
    return edge[0] + edge.cumsum(0)[x_lengths - 1, lane] + row.sum(0)


def backward(
    grad: Float[Tensor, "n"],
    weights: Float[Tensor, "T L n"],
    ratios: tuple[Float[Tensor, "T L n"], Float[Tensor, "T L n"]],
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
) -> Float[Tensor, "T L n"]:
    """Gradient of ``grad · forward(...)`` to the rates, in memory of `ratios`; all is used up.

    Precise where the largest of `grad` is about `SCALE`. Not finite where a ratio overflowed in
    what lies beyond a lane's last cell, too.
    """
    steps, others, lanes = weights.shape
    # A ratio is read once, at the cell that it leads to. Afterwards its place collects what is
    # sent back to its own cell, from the right first; what goes back diagonally waits in the
    # place of the weight that it came from.
    across, arrived = ratios
    arrived[0] = 0.0
    arrived[:, -1] = 0.0
    inner = (x_lengths > 1) & (y_lengths > 1)
    ends = torch.where(inner, x_lengths + y_lengths - 4, steps + others)
    order = ends.argsort()
    stops = [0, *torch.bincount(ends, minlength=steps + others).cumsum(0).tolist()]
    stride, shift = (others - 1) * lanes, (others + 1) * lanes
    room = weights.new_empty(min(steps, others), lanes)
    bases = [cells.storage_offset() for cells in (weights, across, arrived)]
    for k, (corner, count) in reversed(list(enumerate(diagonals(steps - 1, others - 1)))):
        shape, strides, offset = (count, lanes), (stride, 1), corner * lanes
        weight = weights.as_strided(shape, strides, bases[0] + offset + shift)
        here = arrived.as_strided(shape, strides, bases[2] + offset + shift)
        # Cells of the last column and row have none diagonally after them.
        first, last = int(k >= others - 2), count - int(k >= steps - 2)
        if last > first:
            after = bases[0] + offset + 2 * shift + first * stride
            here[first:last].add_(weights.as_strided((last - first, lanes), strides, after))
        if stops[k] < stops[k + 1]:
            lane = order[stops[k] : stops[k + 1]]
            arrived[x_lengths[lane] - 1, y_lengths[lane] - 1, lane] += grad[lane]
        from_above = across.as_strided(shape, strides, bases[1] + offset + lanes)
        left = arrived.as_strided(shape, strides, bases[2] + offset + others * lanes)
        part = room[:count]
        torch.add(from_above, left, out=part)
        torch.div(here, part.add_(weight), out=part)
        left.mul_(part)
        above = arrived.as_strided(shape, strides, bases[2] + offset + lanes)
        above.addcmul_(part, from_above)
        # A diagonal step counts its cell twice.
        here.add_(weight.mul_(part))
    # What arrives in the first row and column has only them to go.
    arrived[0, :-1] += weights[1, 1:] if steps > 1 else 0.0
    arrived[1:-1, 0] += weights[2:, 1] if others > 1 else 0.0
    lane = torch.arange(lanes, device=weights.device)
    arrived[x_lengths - 1, y_lengths - 1, lane] += grad.masked_fill(inner, 0.0)
    for edge in (arrived[0], arrived[:, 0]):
        edge.copy_(edge.flip(0).cumsum(0).flip(0))
    arrived[0, 0] *= 2
    return arrived
