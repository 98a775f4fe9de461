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
    alignment: Float[Tensor, "T L n"],
) -> None:
    """Write the gradient of ``grad · forward(...)`` to the rates to `alignment`.

    Precise where the largest of `grad` is about `SCALE`. Not finite where a ratio overflowed in
    what lies beyond a lane's last cell, too.
    """
    steps, others, lanes = weights.shape
    across, down = ratios
    lane = torch.arange(lanes, device=weights.device)
    alignment.zero_()[x_lengths - 1, y_lengths - 1, lane] = grad
    stride, shift = (others - 1) * lanes, (others + 1) * lanes
    room = weights.new_empty(min(steps, others), lanes)
    bases = [cells.storage_offset() for cells in (weights, across, down, alignment)]
    for corner, count in reversed(list(diagonals(steps - 1, others - 1))):
        shape, strides, offset = (count, lanes), (stride, 1), corner * lanes
        weight = weights.as_strided(shape, strides, bases[0] + offset + shift)
        from_above = across.as_strided(shape, strides, bases[1] + offset + lanes)
        from_left = down.as_strided(shape, strides, bases[2] + offset + others * lanes)
        arrived = alignment.as_strided(shape, strides, bases[3] + offset + shift)
        part = room[:count]
        torch.add(from_above, from_left, out=part)
        torch.div(arrived, part.add_(weight), out=part)
        above = alignment.as_strided(shape, strides, bases[3] + offset + lanes)
        left = alignment.as_strided(shape, strides, bases[3] + offset + others * lanes)
        before = alignment.as_strided(shape, strides, bases[3] + offset)
        above.addcmul_(part, from_above)
        left.addcmul_(part, from_left)
        part.mul_(weight)
        before.add_(part)
        # A diagonal step counts its cell twice.
        arrived.add_(part)
    # What arrives in the first row and column has only them to go.
    for edge in (alignment[0], alignment[:, 0]):
        edge.copy_(edge.flip(0).cumsum(0).flip(0))
    alignment[0, 0] *= 2
