"""What is done elsewhere for the same scores, behind one call: (x, y) -> (B, C), differentiable.

Written from the descriptions of the methods.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

Scores = Callable[[Tensor, Tensor], Tensor]


def maxsim_einsum() -> Scores:
    """MaxSim with the whole (B, C, T, L) tensor."""

    def scores(x: Tensor, y: Tensor) -> Tensor:
        cosines = torch.einsum("btd,cld->bctl", normalize(x, dim=-1), normalize(y, dim=-1))
        return (cosines.amax(3).mean(2) + cosines.amax(2).mean(2)) / 2

    return scores


def attention_per_pair() -> Scores:
    """Cross-attention in a loop over pairs."""

    def scores(x: Tensor, y: Tensor) -> Tensor:
        x, y = normalize(x, dim=-1), normalize(y, dim=-1)
        rows = []
        for a in x:
            for b in y:
                logits = a @ b.T / 0.1
                over_b = torch.cosine_similarity(a, logits.softmax(1) @ b, dim=1).mean()
                over_a = torch.cosine_similarity(b, logits.T.softmax(1) @ a, dim=1).mean()
                rows.append((over_a + over_b) / 2)
        return torch.stack(rows).view(len(x), len(y))

    return scores


PEERS = {
    "local: einsum": maxsim_einsum,
    "attention: per pair": attention_per_pair,
}
