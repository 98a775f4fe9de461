"""The number of threads that torch computes with on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads inside the block; None leaves the number unchanged.

    Small models gain nothing from a second thread: its share of each operation is too small. Where
    another process uses the core, threads that wait for each other by spinning can take a hundred
    times as long as one thread alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
