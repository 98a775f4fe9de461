"""Values that `CLIP.training_step` reports in addition to its losses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from clipseq.sequences import Sequences
from clipseq.similarity import Similarity


def part_weights(similarity: Similarity) -> dict[str, Tensor]:
    """Return the weights of a similarity that is made of others, such as ``combined``."""
    weights = getattr(similarity, "weights", None)
    if not similarity.composite or not isinstance(weights, Mapping):
        return {}
    return {f"weight/{name}": torch.as_tensor(weight) for name, weight in weights.items()}


def norms(name: str, pooled: Tensor, sequence: Sequences | None) -> dict[str, Tensor]:
    """Return the mean L2 norm of the pooled features, and of the real steps."""
    values = {f"norm/{name}_pooled": pooled.detach().float().norm(dim=-1).mean()}
    if sequence is not None:
        steps = sequence.values.detach().float().norm(dim=-1)
        values[f"norm/{name}_seq"] = steps.sum() / sequence.mask.sum()
    return values
