"""``otam``: one sequence found anywhere in the other, in order."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq import Sequences, Similarity, hookimpl


class OTAMSimilarity(Similarity):
    r"""Ordered alignment with a free start and a free end, averaged over both directions.

    .. math::
        S(x \to y) = \frac{\gamma}{l} \log \frac{1}{N} \sum_p e^{\sum_j s_{p(j) j} / \gamma},
        \qquad S = \tfrac12 \big( S(x \to y) + S(y \to x) \big)

    over all walks p through x. A walk assigns one step of x to each of the l steps of y; it starts
    at any step of x, then stays or advances by one, and ends anywhere. Steps of x before and after
    the walk cost nothing, so a caption can be found inside a long recording. N is the number of
    walks.

    OTAM (Cao et al., arXiv:1906.11415) pads the costs of its soft-DTW so that start and end are
    free, and also takes both directions. We differ in the units, which are cosines per step, and in
    the division by N, without which long sequences would gain from the number of their walks. A
    constant cosine scores exactly itself, and S never leaves the range of the cosines.

    Cost: O(B·C·T·L·D) for the cosines, then 2 transcendental functions per cell and direction, step
    by step along one sequence and over everything else at once.

    Args:
        gamma: smoothing, in units of cost, positive. If it is small, only the best walk counts.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: gamma is not positive.
    """

    default_weight = 0.2
    # Autograd keeps about ten numbers per cell.
    tile_elements = 2**18

    def __init__(self, *, gamma: float = 0.1, embed_dim: int | None = None) -> None:
        super().__init__(embed_dim=embed_dim)
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be positive, got {gamma!r}")
        self.gamma = float(gamma)

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        cosines = torch.einsum("btd,cld->bctl", x.values, y.values)
        return _both_ways(cosines, x.lengths[:, None], y.lengths, self.gamma)

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        """Return the gradient of S with respect to the cosines: expected walks, which sum to 1."""
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors from inference mode cannot be differentiated; clones of them can.
            cosines = torch.bmm(x.values, y.values.mT).detach().clone().requires_grad_()
            scores = _both_ways(cosines, x.lengths.clone(), y.lengths.clone(), self.gamma)
            (weights,) = torch.autograd.grad(scores.sum(), cosines)
        return weights


def _both_ways(
    cosines: Float[Tensor, "*n T L"], x_lengths: Tensor, y_lengths: Tensor, gamma: float
) -> Float[Tensor, "*n"]:
    rates = cosines / gamma
    onto_x = _walks(rates, x_lengths, y_lengths) / y_lengths
    onto_y = _walks(rates.mT, y_lengths, x_lengths) / x_lengths
    return gamma * (onto_x + onto_y) / 2


_NEVER = -1e30
"""Log weight of an impossible walk; finite, so that differences are never NaN."""


def _walks(
    rates: Float[Tensor, "*n T L"], lengths: Int[Tensor, "..."], others: Int[Tensor, "..."]
) -> Float[Tensor, "*n"]:
    """Return the log of the mean weight of walks through the first `lengths` rows, by columns."""
    shape = torch.broadcast_shapes(lengths.shape, others.shape)
    others = others.expand(shape)[..., None]
    # This is one tensor per column, with its steps contiguous.
    columns = rates.movedim(-1, 0).contiguous().unbind(0)
    weights, counts = columns[0], torch.zeros_like(columns[0])
    for j, column in enumerate(columns[1:], start=1):
        # A pair that has no further columns keeps its weights.
        over = others <= j
        weights = torch.where(over, weights, torch.logaddexp(weights, _down(weights)) + column)
        counts = torch.where(over, counts, torch.logaddexp(counts, _down(counts)))
    steps = torch.arange(rates.shape[-2], device=rates.device)
    outside = steps >= lengths.expand(shape)[..., None]
    return _total(weights, outside) - _total(counts, outside)


def _total(logs: Tensor, outside: Tensor) -> Tensor:
    return logs.masked_fill(outside, _NEVER).logsumexp(-1)


def _down(logs: Float[Tensor, "*n T"]) -> Float[Tensor, "*n T"]:
    return torch.nn.functional.pad(logs[..., :-1], (1, 0), value=_NEVER)


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"otam": OTAMSimilarity}
