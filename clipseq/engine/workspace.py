"""Loops over a batch, a few items at a time: the check that they pay, and memory to reuse."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

NUMBERS = 2**18
"""Largest number of elements of the first tensor in a part of `few_items`: they fit the cache."""


class Room:
    """Memory that is reused for every tile, since touching fresh pages costs more than the work.

    Args:
        like: a tensor with the dtype and device that the memory shall have.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._held: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        """Number of elements that it holds."""
        return sum(map(len, self._held.values()))

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the memory of this name in this shape, without clearing it.

        It is allocated at the first call, and again if it is too small.
        """
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size:
            del held
            self._held.pop(name, None)
            self._held[name] = self._like.new_empty(size)
        return self._held[name][:size].view(shape)

    def clear(self) -> None:
        """Free the memory."""
        self._held.clear()


def loops_pay(values: Tensor) -> bool:
    """Return True if a batch is best processed in parts: on a CPU, outside tracing and vmap.

    Only then may code read a value, write to preallocated memory, or reinterpret bits.
    """
    return (
        values.device.type == "cpu"
        and type(values) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not values.is_neg()  # the imaginary part of a conjugate: its bits are not its numbers
        and torch._C._len_torch_dispatch_stack() == 0  # make_fx, for example
        and not torch._C._functorch.is_batchedtensor(values)  # vmap
        and not torch._C._functorch.is_legacy_batchedtensor(values)  # is_grads_batched
    )


def few_items(*sides: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut all tensors alike along the batch, so that intermediate results fit into the cache."""
    first = sides[0]
    count = max(1, NUMBERS * len(first) // max(1, first.numel()))
    if count >= len(first):  # a split costs as much as a small sum
        return iter((sides,))
    return zip(*(side.split(count) for side in sides), strict=True)
