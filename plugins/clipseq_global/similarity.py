"""Cosine of pooled sequences."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity, unit
from clipseq.engine.workspace import loops_pay

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

    def prepare_x(self, x: Sequences) -> Float[Tensor, "B D"]:
        """The unit pooled vector."""
        return unit(self._pooled(x))

    def prepare_align_x(self, x: Sequences) -> Sequences:
        """The steps themselves."""
        return x

    def prepare_align_y(self, y: Sequences) -> Sequences:
        """The steps themselves."""
        return y

    def _pooled(self, x: Sequences) -> Float[Tensor, "B D"]:
        """Up to a positive factor."""
        if self.pool == "mean":
            if loops_pay(x.values):
                # As good, since only the direction counts, and padding is zero.
                total = x.values.sum(1)
                if bool(total.isfinite().all()):
                    return total
            # In one product: multiplying first keeps large values finite, with no room for all.
            shares = x.mask / x.lengths[:, None].to(x.values.dtype)
            return torch.bmm(shares[:, None], x.values).squeeze(1)
        if self.pool == "max":
            return x.values.masked_fill(~x.mask[..., None], -torch.inf).amax(1)
        if self.pool == "first":
            return x.values[:, 0]
        last = (x.lengths - 1)[:, None, None].expand(-1, 1, x.values.shape[2])
        return x.values.gather(1, last).squeeze(1)

    def score(self, x: Float[Tensor, "b D"], y: Float[Tensor, "c D"]) -> Float[Tensor, "b c"]:
        return x @ y.T

    def score_all(
        self, x: Float[Tensor, "B D"], y: Float[Tensor, "C D"], steps: tuple[int, int]
    ) -> Float[Tensor, "B C"]:
        """One matrix product; there is nothing to tile."""
        return self.score(x, y)

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        r"""Each pair of steps by its part in ``⟨pool(x), pool(y)⟩``, where that is positive.

        mean: ``relu(cos(x_t, y_l)) / (t·l)``; the steps' lengths are left out, so that loud steps
        do not drown the rest. max: the sum of the products of the features that x has from step t
        and y from step l. first, last: 1 at the one pair of steps that counts.
        """
        if self.pool == "mean":
            cosines = torch.bmm(unit(x.values), unit(y.values).mT).clamp(min=0.0)
            return cosines / (x.lengths * y.lengths)[:, None, None]
        if self.pool == "max":
            share_x, share_y = _winners(x), _winners(y)
            products = (unit(self._pooled(x)) * unit(self._pooled(y))).clamp(min=0.0)
            return torch.einsum("ntd,nld,nd->ntl", share_x, share_y, products)
        weights = x.values.new_zeros(len(x.values), x.values.shape[1], y.values.shape[1])
        at_x, at_y = torch.zeros_like(x.lengths), torch.zeros_like(y.lengths)
        if self.pool == "last":
            at_x, at_y = x.lengths - 1, y.lengths - 1
        weights[torch.arange(len(weights), device=weights.device), at_x, at_y] = 1.0
        return weights


def _winners(x: Sequences) -> Float[Tensor, "B T D"]:
    best = x.values.masked_fill(~x.mask[..., None], -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(x.values).scatter(1, best, 1.0)
