"""The scores and the alignments of matched pairs: one lane of the recursion for each pair."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.engine import first_derivative_only, scaled
from clipseq_temporal.recursion import (
    GROWTH,
    Reach,
    Strip,
    Sweep,
    backward,
    cells_within,
    confine,
    edges,
    forward,
    log_paths,
    reach_of,
    strips,
    ways_at_once,
)


def matched_scores(
    x: Float[Tensor, "n T D"],
    y: Float[Tensor, "n L D"],
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
    gamma: float,
    band: float | None,
) -> Float[Tensor, "n"]:
    """Return the score of each pair of unit steps x and y, both packed to the front."""
    scores: Tensor = _Matched.apply(x, y, x_lengths, y_lengths, gamma, band)
    return scores


def expected_alignment(
    x: Float[Tensor, "n T D"],
    y: Float[Tensor, "n L D"],
    x_lengths: Int[Tensor, "n"],
    y_lengths: Int[Tensor, "n"],
    gamma: float,
    band: float | None,
) -> Float[Tensor, "n T L"]:
    """Return how often a path meets each cell, over all paths; diagonal steps count twice."""
    with torch.no_grad():
        field, lanes, reach, room = _prepared(x, y, x_lengths, y_lengths, gamma, band)
        # With the score subtracted, logarithms stay small and their differences precise.
        sweep = Sweep(field.clone(), reach, room)
        weight = forward(lanes, lambda _: sweep, y_lengths)
        field[1:, 1:] -= weight / (x_lengths + y_lengths)
        shares = field.new_empty(3 * cells_within(lanes[0].shape, reach) * len(x))
        kept = Sweep(field, reach, room, shares)
        forward(lanes, lambda _: kept, y_lengths)
        ones = torch.ones_like(weight)
        ((_, alignment),) = backward(ones, lanes, lambda _: kept, y_lengths)
        whole = alignment.new_zeros(x.shape[1], y.shape[1], len(x))
        # Closed cells get the exact zero again.
        clean = torch.threshold(alignment, _NOTHING, 0.0)
        whole[: alignment.shape[0], : alignment.shape[1]] = clean
        return whole.permute(2, 0, 1)


_NOTHING = 2.0**-40
"""Expected number of times that a cell is met below which it is zero; see `LEAST`."""


class _Matched(torch.autograd.Function):
    """`matched_scores`, whose gradient to the cosines is the alignment over t + l."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        x_lengths: Tensor,
        y_lengths: Tensor,
        gamma: float,
        band: float | None,
    ) -> Tensor:
        field, lanes, reach, room = _prepared(x, y, x_lengths, y_lengths, gamma, band)
        sweep = Sweep(field, reach, room)
        weight = forward(lanes, lambda _: sweep, y_lengths)
        mean = weight - log_paths(x_lengths, y_lengths, band, x.dtype)
        return gamma * math.log(2) * mean / (x_lengths + y_lengths)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.gamma, ctx.band = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, x_lengths, y_lengths = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):  # the caller of backward may have it
            cells = expected_alignment(x, y, x_lengths, y_lengths, ctx.gamma, ctx.band)
            grad, largest = scaled(grad)
            cells = cells * (grad / (x_lengths + y_lengths))[:, None, None]
            to_x, to_y = torch.bmm(cells, y), torch.bmm(cells.mT, x)
            return to_x * largest, to_y * largest, None, None, None, None


def _prepared(
    x: Tensor, y: Tensor, t: Tensor, length: Tensor, gamma: float, band: float | None
) -> tuple[Float[Tensor, "_ _ n"], list[Strip], Reach | None, Tensor]:
    """Return the field of rates, the lanes, the columns in reach, and memory for a `Sweep`."""
    # One strip, with or without a band, since n pairs are few.
    lanes = strips(t, length, None)
    rates = torch.einsum("ntd,nld->tln", x, y)
    rates = rates[: int(t.max()), : int(length.max())] / (gamma * math.log(2)) - GROWTH
    reach = None
    if band is not None:
        low, high = edges(lanes[0], t, length, band, rates.dtype)
        confine(rates, low, high)
        reach = reach_of(low, high)
    field = torch.nn.functional.pad(rates, (0, 0, 1, 0, 1, 0))
    return field, lanes, reach, rates.new_empty(ways_at_once(lanes[0].shape, reach) * len(t))
