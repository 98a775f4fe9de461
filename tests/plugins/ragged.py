"""Ragged batches, and their real steps for oracles."""

import torch
from torch import Tensor


def ragged(
    batch: int, steps: int, features: int, seed: int, prefix: bool = False
) -> tuple[Tensor, Tensor]:
    """Return random float64 sequences, and masks with at least one real step each."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, steps, features, generator=generator, dtype=torch.float64)
    if prefix:
        lengths = torch.randint(1, steps + 1, (batch,), generator=generator)
        mask = torch.arange(steps) < lengths[:, None]
    else:
        mask = torch.rand(batch, steps, generator=generator) < 0.6
        mask[:, int(torch.randint(steps, (1,), generator=generator))] = True
    return values, mask


def real_steps(values: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the real steps of each item."""
    return [item[real] for item, real in zip(values, mask, strict=True)]
