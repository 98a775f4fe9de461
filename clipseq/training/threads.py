"""How many threads torch computes with on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads inside the block; None leaves the number as it is.

    Small models gain nothing from a second thread, whose share of each operation is over before
    it has begun; and where another process wants the core, threads that wait for each other by
    spinning can take a hundred times as long as one alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
