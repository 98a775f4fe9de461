"""Cross-attention between the steps of every pair."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipseq import Sequences, Similarity, unit
from clipseq_attention.scores import attention_scores


class AttentionSimilarity(Similarity):
    r"""The mean cosine between a step and what it attends to in the other sequence.

    Steps are L2-normalised and cut into heads. With :math:`x_t = (x_t^1, ..., x_t^H)`,

    .. math::
        a^h_{tl} = \mathrm{softmax}_l \big( H \langle x_t^h, y_l^h \rangle / \tau \big), \qquad
        \hat y_t = \Big( \sum_l a^1_{tl}\, y_l^1, \;\dots,\; \sum_l a^H_{tl}\, y_l^H \Big)

        S = \tfrac12 \Big( \tfrac1t \sum_t \cos(x_t, \hat y_t)
            + \tfrac1l \sum_l \cos(y_l, \hat x_l) \Big)

    with the softmax over the real steps of the other sequence of *each* pair. H times a head's
    product, so that the mean of the heads' logits is the cosine over tau whatever H is.
    After SCAN (arXiv:1803.08024), text-to-image and image-to-text averaged; SCAN has one head and
    normalises the attention over both sides.

    ``ŷ_t`` exists for one tile of pairs at a time, never for all, and is made again in backward.
    Cost: O(B·C·T·L·D), as many matrix products as twelve times those of the steps, and 2·H
    exponentials a cell, forward and backward together.

    Args:
        num_heads: heads; features that do not divide evenly leave the last head zeros.
        temperature: tau, learnable, where it starts.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: num_heads below 1, or a temperature that is not positive.
    """

    default_weight = 0.3

    def __init__(
        self, *, num_heads: int = 8, temperature: float = 0.1, embed_dim: int | None = None
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        if not isinstance(num_heads, int) or num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.num_heads = num_heads
        # One number, in one dimension: FSDP2 shards no parameter that has none.
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """tau; stays positive, as its logarithm is what is learnt."""
        return self.log_temperature.squeeze().exp()

    def prepare_x(self, x: Sequences) -> dict[str, Tensor]:
        """Heads (B, H, T, d) of the unit steps, and the mask."""
        values = unit(x.values)
        batch, steps, features = values.shape
        size = -(-features // self.num_heads)
        heads = -(-features // size)
        padded = nn.functional.pad(values, (0, heads * size - features))
        split = padded.view(batch, steps, heads, size).transpose(1, 2)
        return {"heads": split, "mask": x.mask}

    def score(self, x: dict[str, Tensor], y: dict[str, Tensor]) -> Float[Tensor, "b c"]:
        scale = x["heads"].shape[1] / self.temperature.to(x["heads"].dtype)
        lengths = x["mask"].sum(1), y["mask"].sum(1)
        return attention_scores(x["heads"], y["heads"], *lengths, scale)

    def score_all(
        self, x: dict[str, Tensor], y: dict[str, Tensor], steps: tuple[int, int]
    ) -> Float[Tensor, "B C"]:
        """`score` of everything at once: the operator cuts its own tiles."""
        return self.score(x, y)

    def align(self, x: dict[str, Tensor], y: dict[str, Tensor]) -> Float[Tensor, "n t l"]:
        """The attention itself, mean over heads and over the two directions."""
        x_mask, y_mask = x["mask"], y["mask"]
        logits = self._logits(x["heads"] @ y["heads"].mT)
        over_y = logits.masked_fill(~y_mask[:, None, None, :], -torch.inf).softmax(3)
        over_x = logits.masked_fill(~x_mask[:, None, :, None], -torch.inf).softmax(2)
        both = (over_y + over_x).mean(1) / 2
        return both.masked_fill(~(x_mask[:, :, None] & y_mask[:, None, :]), 0.0)

    def _logits(self, products: Tensor) -> Tensor:
        return products * (products.shape[-3] / self.temperature.to(products.dtype))
