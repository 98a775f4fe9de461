"""Memory for loops over the parts of a batch: few items at a time, in the same room."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

NUMBERS = 2**18
"""Of the first side of `few_items`: few enough for the cache."""


class Room:
    """Memory that every tile uses again: touching fresh pages costs more than the work on them.

    Args:
        like: of the dtype and on the device of what is taken.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._held: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return sum(map(len, self._held.values()))

    def take(self, name: str, *shape: int) -> Tensor:
        """What is held under the name, of this shape, whatever it holds; made where too small."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size:
            del held
            self._held.pop(name, None)
            self._held[name] = self._like.new_empty(size)
        return self._held[name][:size].view(shape)

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()


def loops_pay(values: Tensor) -> bool:
    """Whether to go through a batch in parts: on a CPU, where nothing is traced or vectorised.

    Only there may a number be read, a result be written to given memory, or bits be looked at.
    """
    return (
        values.device.type == "cpu"
        and type(values) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not values.is_neg()  # whose bits are not its numbers: of a conjugate's imaginary part
        and torch._C._len_torch_dispatch_stack() == 0  # of make_fx, say
        and not torch._C._functorch.is_batchedtensor(values)  # of vmap
        and not torch._C._functorch.is_legacy_batchedtensor(values)  # of is_grads_batched
    )


def few_items(*sides: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All tensors cut along the batch alike: what is made of a part has no need of room for all."""
    first = sides[0]
    count = max(1, NUMBERS * len(first) // max(1, first.numel()))
    if count >= len(first):  # a split costs as much as a small sum
        return iter((sides,))
    return zip(*(side.split(count) for side in sides), strict=True)
