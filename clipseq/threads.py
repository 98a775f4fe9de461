"""Tiles of work side by side on the CPU's cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8
"""Most tiles at once: beyond it, threads wait for the interpreter more than they compute."""


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``[work(item) for item in items]``, as many at once as torch computes with threads.

    For the tiles of an operator of one's own: operations on a tile that fits the cache are too
    short to be split among threads, so each thread takes whole tiles instead. Nothing is recorded
    for autograd inside. Which thread takes which item is left to chance: for results that are the
    same in every run, let each item write to places of its own, and add up in the order of items.

    With one thread or one item it is the plain loop. It is for tensors on the CPU: a GPU has its
    own way to be busy, so give it one item.

    Args:
        work: called once per item.
        items: in the order in which they are begun.

    Raises:
        Exception: the first that `work` raised; items that were not begun are left out.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items), MOST)
    if workers <= 1:
        with torch.no_grad():
            return [work(item) for item in items]

    def quietly(item: Item) -> Result:
        with torch.no_grad():  # grad mode is each thread's own
            return work(item)

    # A thread's number of threads is what torch is set to when it first computes.
    torch.set_num_threads(threads // workers)
    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(quietly, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)
