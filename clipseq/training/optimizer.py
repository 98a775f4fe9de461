"""The parameters with weight decay, and the learning rate over the run."""

import math
from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups for an optimizer: matrices, with weight decay, and the rest, without it.

    Norm gains, biases, loss scales and mixing weights have fewer than two dimensions; pulling
    them to zero would change what they mean instead of keeping them small. Frozen parameters
    are in neither group.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Return the factor on the learning rate at optimizer step `step` (from 0) of `total`.

    It rises linearly from ``1 / warmup`` to 1 over the first `warmup` steps, then falls along half
    a cosine to 0, which it reaches after the last step.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
