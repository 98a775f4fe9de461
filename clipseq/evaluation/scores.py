"""Scores of any pairs of two encoded sides, by sequences or by pooled features."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.engine.unit_vectors import cosines, unit
from clipseq.retrieval import Encoded

if TYPE_CHECKING:
    from clipseq.model import CLIP


@torch.no_grad()
def sequence_scores(
    model: "CLIP", x: Encoded, y: Encoded, *, block: int = 128
) -> Float[Tensor, "N M"]:
    """Score every x with every y by the model's sequence similarity, block by block."""
    rows = []
    for i in range(0, len(x), block):
        row = [
            _sequence_block(model, x[i : i + block], y[j : j + block])
            for j in range(0, len(y), block)
        ]
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


@torch.no_grad()
def pooled_scores(x: Encoded, y: Encoded) -> Float[Tensor, "N M"]:
    """Score every x with every y by the cosine of their pooled features."""
    return cosines(x.pooled, y.pooled).cpu()


@torch.no_grad()
def sequence_pair_scores(
    model: "CLIP", x: Encoded, y: Encoded, owner: Int[Tensor, "P"], *, clips: int = 8
) -> Float[Tensor, "P"]:
    """Score y[p] with only x[owner[p]] by the sequence similarity; `owner` must be ascending.

    A few clips at a time are scored with all of their captions: the pairs that are not needed cost
    less than one call per clip.
    """
    scores = torch.empty(len(owner), dtype=torch.float32)
    for start in range(0, len(x), clips):
        mine = ((owner >= start) & (owner < start + clips)).nonzero().flatten()
        if len(mine):
            some = x[start : start + clips]
            block = _sequence_block(model, some, y[mine])
            scores[mine] = block[owner[mine] - start, torch.arange(len(mine))]
    return scores


@torch.no_grad()
def pooled_pair_scores(x: Encoded, y: Encoded, owner: Int[Tensor, "P"]) -> Float[Tensor, "P"]:
    """Score y[p] with x[owner[p]] by the cosine of their pooled features."""
    own = unit(x.pooled.float())[owner.to(x.pooled.device)]
    return (own * unit(y.pooled.float())).sum(dim=1).cpu()


def _sequence_block(model: "CLIP", x: Encoded, y: Encoded) -> Tensor:
    if x.steps is None or y.steps is None or model.sequence_loss_fn is None:
        raise ValueError(
            "model must compare sequences, got one that compares pooled features only; "
            "use pooled_scores"
        )
    one, two = x.sequences(), y.sequences()
    scores: Tensor = model.sequence_loss_fn.similarity_fn(
        one.values, two.values, one.mask, two.mask
    )
    return scores.float().cpu()
