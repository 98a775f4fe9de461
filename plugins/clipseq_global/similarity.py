"""Cosine of pooled sequences."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity, unit
from clipseq.engine import loops_pay


class GlobalSimilarity(Similarity):
    r"""Cosine of the pooled sequences: ``S = cos(pool(x), pool(y))``.

    CLIP (arXiv:2103.00020) does this with its pooled features. Order and parts are lost.
    Cost: O((B + C)·T·D) to pool, and one (B, D) x (D, C) product.

    Args:
        pool: pooling over the real steps: "mean", "max" (feature by feature), "first" or "last".
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: `pool` is not one of these.
    """

    default_weight = 0.1

    def __init__(
        self,
        *,
        pool: Literal["mean", "max", "first", "last"] = "mean",
        embed_dim: int | None = None,
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        if not isinstance(pool, str) or pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        self.pool = pool

    def prepare_x(self, x: Sequences) -> Float[Tensor, "B D"]:
        """Return the pooled steps as a unit vector."""
        return unit(POOLS[self.pool].pool(x))

    def prepare_align_x(self, x: Sequences) -> Sequences:
        """Return the steps unchanged."""
        return x

    def prepare_align_y(self, y: Sequences) -> Sequences:
        """Return the steps unchanged."""
        return y

    def score(self, x: Float[Tensor, "b D"], y: Float[Tensor, "c D"]) -> Float[Tensor, "b c"]:
        return x @ y.T

    def score_all(
        self, x: Float[Tensor, "B D"], y: Float[Tensor, "C D"], steps: tuple[int, int]
    ) -> Float[Tensor, "B C"]:
        """Score everything in one matrix product; there is nothing to tile."""
        return self.score(x, y)

    def score_pairs(self, x: Float[Tensor, "n D"], y: Float[Tensor, "n D"]) -> Float[Tensor, "n"]:
        return (x * y).sum(1)

    def score_all_pairs(
        self, x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], steps: tuple[int, int]
    ) -> Float[Tensor, "n"]:
        """Score everything at once; there is nothing to tile."""
        return self.score_pairs(x, y)

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        r"""Weigh each pair of steps by its share of ``⟨pool(x), pool(y)⟩``, if that is positive.

        mean: ``relu(cos(x_t, y_l)) / (t·l)``. The norms of the steps are left out, so that loud
        steps do not drown the others. max: the sum of the products over those features that x takes
        from step t and y from step l. first, last: 1 at the one pair of steps that counts.
        """
        return POOLS[self.pool].align(x, y)


class Pool(NamedTuple):
    """A pooling over the real steps, and its alignment.

    Attributes:
        pool: (B, T, D) -> (B, D), up to a positive factor.
        align: weights (n, t, l) of matched pairs.
    """

    pool: Callable[[Sequences], Tensor]
    align: Callable[[Sequences, Sequences], Tensor]


def _pool_mean(x: Sequences) -> Float[Tensor, "B D"]:
    if loops_pay(x.values):
        # The sum is enough, since only the direction counts and padding is zero.
        total = x.values.sum(1)
        if bool(total.isfinite().all()):
            return total
    # Multiplying before summing keeps large values finite; bmm needs no memory for the products.
    shares = x.mask / x.lengths[:, None].to(x.values.dtype)
    return torch.bmm(shares[:, None], x.values).squeeze(1)


def _align_mean(x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
    cosines = torch.bmm(unit(x.values), unit(y.values).mT).clamp(min=0.0)
    return cosines / (x.lengths * y.lengths)[:, None, None]


def _pool_max(x: Sequences) -> Float[Tensor, "B D"]:
    return x.values.masked_fill(~x.mask[..., None], -torch.inf).amax(1)


def _align_max(x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
    products = (unit(_pool_max(x)) * unit(_pool_max(y))).clamp(min=0.0)
    return torch.einsum("ntd,nld,nd->ntl", _winners(x), _winners(y), products)


def _winners(x: Sequences) -> Float[Tensor, "B T D"]:
    """Return 1 where a step has the largest value of a feature, and 0 elsewhere."""
    best = x.values.masked_fill(~x.mask[..., None], -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(x.values).scatter(1, best, 1.0)


def _pool_first(x: Sequences) -> Float[Tensor, "B D"]:
    return x.values[:, 0]


def _align_first(x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
    return _align_one_pair(x, y, torch.zeros_like(x.lengths), torch.zeros_like(y.lengths))


def _pool_last(x: Sequences) -> Float[Tensor, "B D"]:
    last = (x.lengths - 1)[:, None, None].expand(-1, 1, x.values.shape[2])
    return x.values.gather(1, last).squeeze(1)


def _align_last(x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
    return _align_one_pair(x, y, x.lengths - 1, y.lengths - 1)


def _align_one_pair(
    x: Sequences, y: Sequences, at_x: Tensor, at_y: Tensor
) -> Float[Tensor, "n t l"]:
    weights = x.values.new_zeros(len(x.values), x.values.shape[1], y.values.shape[1])
    weights[torch.arange(len(weights), device=weights.device), at_x, at_y] = 1.0
    return weights


POOLS = {
    "mean": Pool(_pool_mean, _align_mean),
    "max": Pool(_pool_max, _align_max),
    "first": Pool(_pool_first, _align_first),
    "last": Pool(_pool_last, _align_last),
}
"""Poolings by name. To add a pooling, add an entry."""
