"""Cosine of pooled sequences."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity, unit

POOLS = ("mean", "max", "first", "last")


class GlobalSimilarity(Similarity):
    r"""Cosine of the pooled sequences: ``S = cos(pool(x), pool(y))``.

    What CLIP (arXiv:2103.00020) does with its pooled features. Order and parts are lost.
    Cost: O((B + C)·T·D) to pool and one (B, D) x (D, C) product.

    Args:
        pool: over the real steps: "mean", "max" (feature by feature), "first" or "last".
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: another pool.
    """

    default_weight = 1.0

    def __init__(
        self,
        *,
        pool: Literal["mean", "max", "first", "last"] = "mean",
        embed_dim: int | None = None,
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        self.pool = pool

    def prepare_x(self, x: Sequences) -> tuple[Float[Tensor, "B D"], Sequences]:
        """The unit pooled vector, and the steps themselves for `align`."""
        return unit(self._pooled(x)), x

    def _pooled(self, x: Sequences) -> Float[Tensor, "B D"]:
        if self.pool == "mean":
            # The sum points where the mean does; dividing first keeps large values finite.
            return (x.values / x.lengths[:, None, None]).sum(1)
        if self.pool == "max":
            return x.values.masked_fill(~x.mask[..., None], -torch.inf).amax(1)
        if self.pool == "first":
            return x.values[:, 0]
        last = (x.lengths - 1)[:, None, None].expand(-1, 1, x.values.shape[2])
        return x.values.gather(1, last).squeeze(1)

    def score(
        self, x: tuple[Tensor, Sequences], y: tuple[Tensor, Sequences]
    ) -> Float[Tensor, "b c"]:
        return x[0] @ y[0].T

    def score_all(
        self, x: tuple[Tensor, Sequences], y: tuple[Tensor, Sequences], steps: tuple[int, int]
    ) -> Float[Tensor, "B C"]:
        """One matrix product; there is nothing to tile."""
        return self.score(x, y)

    def align(
        self, x: tuple[Tensor, Sequences], y: tuple[Tensor, Sequences]
    ) -> Float[Tensor, "n t l"]:
        r"""Each pair of steps by its part in ``⟨pool(x), pool(y)⟩``, where that is positive.

        mean: ``relu(cos(x_t, y_l)) / (t·l)``; the steps' lengths are left out, so that loud steps
        do not drown the rest. max: the sum of the products of the features that x has from step t
        and y from step l. first, last: 1 at the one pair of steps that counts.
        """
        (_, xs), (_, ys) = x, y
        if self.pool == "mean":
            cosines = torch.bmm(unit(xs.values), unit(ys.values).mT).clamp(min=0.0)
            return cosines / (xs.lengths * ys.lengths)[:, None, None]
        if self.pool == "max":
            share_x, share_y = _winners(xs), _winners(ys)
            products = (unit(self._pooled(xs)) * unit(self._pooled(ys))).clamp(min=0.0)
            return torch.einsum("ntd,nld,nd->ntl", share_x, share_y, products)
        weights = xs.values.new_zeros(len(xs.values), xs.values.shape[1], ys.values.shape[1])
        at_x, at_y = torch.zeros_like(xs.lengths), torch.zeros_like(ys.lengths)
        if self.pool == "last":
            at_x, at_y = xs.lengths - 1, ys.lengths - 1
        weights[torch.arange(len(weights), device=weights.device), at_x, at_y] = 1.0
        return weights


def _winners(x: Sequences) -> Float[Tensor, "B T D"]:
    best = x.values.masked_fill(~x.mask[..., None], -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(x.values).scatter(1, best, 1.0)
