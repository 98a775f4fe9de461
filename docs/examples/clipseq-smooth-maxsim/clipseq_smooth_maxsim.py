"""``smooth_maxsim``: the best match of every step, with a gradient to the second best too."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity, hookimpl


class SmoothMaxSimSimilarity(Similarity):
    r"""MaxSim with a smooth maximum, from both sides.

    .. math::
        S = \tfrac12 \Big( \tfrac1t \sum_i \gamma \log \tfrac1l \sum_j e^{s_{ij}/\gamma}
            + \tfrac1l \sum_j \gamma \log \tfrac1t \sum_i e^{s_{ij}/\gamma} \Big)

    over the cosines s of real steps. FILIP (arXiv:2111.07783) and ColBERT (arXiv:2004.12832) have a
    maximum in place of the log of a mean. A plain logsumexp would add γ·log n for a sequence of n
    steps and exceed 1; the log of a mean does not reward length, a constant cosine scores exactly
    itself, and S never leaves the range of the cosines. γ → 0 gives ``local`` with ``window=1``,
    γ → ∞ the mean of all cosines.

    Cost: O(B·C·T·L·D) for the cosines, then 2 exponentials per cell.

    Args:
        gamma: smoothing, in units of cosine, positive. If it is small, only the best step gets a
            gradient.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: gamma is not positive.
    """

    default_weight = 0.3

    def __init__(self, *, gamma: float = 0.05, embed_dim: int | None = None) -> None:
        super().__init__(embed_dim=embed_dim)
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be positive, got {gamma!r}")
        self.gamma = float(gamma)

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        rates = torch.einsum("btd,cld->bctl", x.values, y.values) / self.gamma
        x_real, y_real = x.mask[:, None, :], y.mask[None, :, :]
        # The lengths take the dtype of the cosines, because the log of an integer tensor is
        # float32.
        t, length = x.lengths[:, None].to(rates.dtype), y.lengths.to(rates.dtype)
        # Padding is excluded before the sum, because an exponential is never zero.
        of_y = rates.masked_fill(~y_real[..., None, :], -torch.inf).logsumexp(3)
        of_x = rates.masked_fill(~x_real[..., :, None], -torch.inf).logsumexp(2)
        to_y = of_y.masked_fill(~x_real, 0.0).sum(2) / t - length.log()
        to_x = of_x.masked_fill(~y_real, 0.0).sum(2) / length - t.log()
        return self.gamma * (to_y + to_x) / 2

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        """Return the gradient of S with respect to the cosines.

        It spreads the share of each step over its matches. A pair's weights sum to 1.
        """
        rates = torch.bmm(x.values, y.values.mT) / self.gamma
        real = x.mask[:, :, None] & y.mask[:, None, :]
        t, length = x.lengths[:, None, None], y.lengths[:, None, None]
        # Padding gets the least finite number, so that a softmax over padding alone is not NaN.
        rates = rates.masked_fill(~real, torch.finfo(rates.dtype).min)
        weights = rates.softmax(2) / t + rates.softmax(1) / length
        return (weights / 2).masked_fill(~real, 0.0)


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"smooth_maxsim": SmoothMaxSimSimilarity}
