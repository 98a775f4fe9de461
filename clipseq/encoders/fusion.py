"""Fusions, which combine the embeddings of the views of a patch into one token."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipseq.encoders.config import Fusion


class Concat(nn.Module):
    """A linear layer on the views side by side.

    The slot of an absent view is zero. Zero is the mean of normalised embeddings, but no embedding
    is zero.
    """

    def __init__(self, views: int, width: int, heads: int):
        super().__init__()
        self.views = views
        self.mix = nn.Linear(views * width, width)

    def forward(
        self, embedded: Float[Tensor, "V B N D"], present: list[int]
    ) -> Float[Tensor, "B N D"]:
        """Return the fused embeddings of the views whose indices are in `present`."""
        slots = [torch.zeros_like(embedded[0])] * self.views
        for view, values in zip(present, embedded, strict=True):
            slots[view] = values
        return self.mix(torch.cat(slots, dim=-1))


class Add(nn.Module):
    """The mean of the views present, whose scale does not depend on their number."""

    def __init__(self, views: int, width: int, heads: int):
        super().__init__()

    def forward(
        self, embedded: Float[Tensor, "V B N D"], present: list[int]
    ) -> Float[Tensor, "B N D"]:
        """Return the fused embeddings of the views whose indices are in `present`."""
        return embedded.mean(0)


class Attention(nn.Module):
    """The mean of the views present, plus the output of a learned query that attends to them."""

    def __init__(self, views: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(width**-0.5 * torch.randn(width))
        # One vector per view, so that the query can distinguish the views whatever they show.
        self.view = nn.Parameter(width**-0.5 * torch.randn(views, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, embedded: Float[Tensor, "V B N D"], present: list[int]
    ) -> Float[Tensor, "B N D"]:
        """Return the fused embeddings of the views whose indices are in `present`."""
        x = embedded.permute(1, 2, 0, 3).flatten(0, 1)  # (B·N, V, D)
        keys = self.key_value(x + self.view[present]).unflatten(-1, (2, self.heads, -1))
        k, v = keys.permute(2, 0, 3, 1, 4)  # each (B·N, H, V, D/H)
        q = self.query.to(k.dtype).view(1, self.heads, 1, -1).expand(len(x), -1, -1, -1)
        y = F.scaled_dot_product_attention(q, k, v)  # (B·N, H, 1, D/H)
        return embedded.mean(0) + self.out(y.flatten(1)).view_as(embedded[0])


FUSIONS: dict[Fusion, type[Concat] | type[Add] | type[Attention]] = {
    "concat": Concat,
    "add": Add,
    "attention": Attention,
}
