"""Cross-attention between the steps of every pair."""

import math
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipseq import Sequences, Similarity
from clipseq.engine import positive_integer, single_number
from clipseq_attention.scores import NOTHING, attention_scores


class AttentionSimilarity(Similarity):
    r"""The mean cosine between a step and what it attends to in the other sequence.

    Steps are L2-normalised and cut into heads. With :math:`x_t = (x_t^1, ..., x_t^H)`,

    .. math::
        a^h_{tl} = \mathrm{softmax}_l \big( H \langle x_t^h, y_l^h \rangle / \tau \big), \qquad
        \hat y_t = \Big( \sum_l a^1_{tl}\, y_l^1, \;\dots,\; \sum_l a^H_{tl}\, y_l^H \Big)

        S = \tfrac12 \Big( \tfrac1t \sum_t \cos(x_t, \hat y_t)
            + \tfrac1l \sum_l \cos(y_l, \hat x_l) \Big)

    with the softmax over the real steps of the other sequence of *each* pair. A head's product is
    multiplied by H, so that the mean of the heads' logits is the cosine divided by tau, for any H.
    The score follows SCAN (arXiv:1803.08024), with its text-to-image and image-to-text variants
    averaged; SCAN has one head and normalises the attention over both sides.

    If what a step attends to cancels (its norm is below 1e-6), it has no direction, and the cosine
    is 0. ``ŷ_t`` exists for one tile of pairs at a time, never for all, and is computed again in
    backward. Cost: O(B·C·T·L·D): forward and backward together take about twelve matrix products of
    all steps with all others, with thin heads; 2·H exponentials per cell, or 4·H where tau has
    become so small that logits exceed 40; and some passes over what each step attends to.

    Args:
        num_heads: largest number of heads; H in the formula is the actual number. Each head has
            ceil(D / num_heads) features, and the last one is padded with zeros where these do not
            divide D.
        temperature: starting value of tau, which is learnable. Gradients grow with 1/tau, and so
            do their rounding errors. The gradient to tau is the difference of two sums, and is
            precise to a millionth of their size.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: num_heads is below 1, or temperature is not positive or outside the range of
            float32.
    """

    default_weight = 0.3
    combined_options = MappingProxyType({"num_heads": 2})
    operators = (attention_scores,)

    def __init__(
        self, *, num_heads: int = 8, temperature: float = 0.1, embed_dim: int | None = None
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        heads = positive_integer(num_heads)
        if heads is None:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads!r}")
        start = single_number(temperature)
        if start is None or not 1e-30 < start < 1e30:
            raise ValueError(f"temperature must be positive, 1e-30 to 1e30, got {temperature!r}")
        self.num_heads = heads
        # One dimension: FSDP2 does not shard parameters without one.
        self.log_temperature = nn.Parameter(torch.tensor([math.log(start)]))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """The temperature tau. It stays positive because its logarithm is learnt."""
        return self.log_temperature.squeeze().exp()

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        heads_x, heads_y = self._heads(x), self._heads(y)
        scale = self._scale(heads_x)
        return attention_scores(heads_x, heads_y, x.lengths, y.lengths, scale)

    def score_all(self, x: Sequences, y: Sequences, steps: tuple[int, int]) -> Float[Tensor, "B C"]:
        """Score everything at once, since the operator cuts its own tiles."""
        return self.score(x, y)

    def score_pairs(self, x: Sequences, y: Sequences) -> Float[Tensor, "n"]:
        heads_x, heads_y = self._heads(x), self._heads(y)
        logits = heads_x @ heads_y.mT * self._scale(heads_x)
        over_y = logits.masked_fill(~y.mask[:, None, None, :], -torch.inf).softmax(3)
        over_x = logits.masked_fill(~x.mask[:, None, :, None], -torch.inf).softmax(2)
        mean_y = _mean_cosine(heads_x, over_y @ heads_y, x)
        return (mean_y + _mean_cosine(heads_y, over_x.mT @ heads_x, y)) / 2

    def score_all_pairs(
        self, x: Sequences, y: Sequences, steps: tuple[int, int]
    ) -> Float[Tensor, "n"]:
        """Score in tiles that count the cells of every head."""
        return super().score_all_pairs(x, y, (steps[0] * self.num_heads, steps[1]))

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        """Return the attention, averaged over heads and over the two directions."""
        products = self._heads(x) @ self._heads(y).mT
        logits = products * self._scale(products)
        over_y = logits.masked_fill(~y.mask[:, None, None, :], -torch.inf).softmax(3)
        over_x = logits.masked_fill(~x.mask[:, None, :, None], -torch.inf).softmax(2)
        both = (over_y + over_x).mean(1) / 2
        return both.masked_fill(~(x.mask[:, :, None] & y.mask[:, None, :]), 0.0)

    def _scale(self, heads: Float[Tensor, "n H _ _"]) -> Float[Tensor, ""]:
        """Return the factor of the products, H / tau, with the device and dtype of `heads`."""
        return heads.shape[1] / self.log_temperature.squeeze().to(heads).exp()

    def _heads(self, steps: Sequences) -> Float[Tensor, "B H T d"]:
        """Return the features of each head, as a view where they divide evenly."""
        features = steps.values.shape[2]
        size = -(-features // self.num_heads)
        heads = -(-features // size)
        values = steps.values
        if features < heads * size:  # pad copies even if it adds nothing
            values = nn.functional.pad(values, (0, heads * size - features))
        return values.unflatten(2, (heads, size)).transpose(1, 2)


def _mean_cosine(
    heads: Float[Tensor, "n H T d"], attended: Float[Tensor, "n H T d"], steps: Sequences
) -> Float[Tensor, "n"]:
    """Return the mean cosine between a real step, a unit vector or zero, and what it attends to."""
    along, squares = (heads * attended).sum((1, 3)), attended.square().sum((1, 3))
    cosines = along * squares.masked_fill(squares <= NOTHING**2, torch.inf).rsqrt()
    return cosines.masked_fill(~steps.mask, 0.0).sum(1) / steps.lengths
