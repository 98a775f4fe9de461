"""The number of threads that torch computes with on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 10_000_000
"""Number of parameters below which a model is trained with one thread, by default."""


def default_threads(model: nn.Module) -> int | None:
    """Return 1 for a model with fewer than `SMALL` parameters; None, torch's default, otherwise."""
    return 1 if sum(p.numel() for p in model.parameters()) < SMALL else None


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads inside the block; None leaves the number unchanged.

    Small models gain nothing from a second thread, since its share of each operation is too small.
    If another process uses the core, threads that wait for each other by spinning can take a
    hundred times as long as a single thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
