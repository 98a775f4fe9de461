"""A tower's input once it has been checked, and the number of items in an input."""

from collections.abc import Mapping, Sized
from typing import Any, NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """A checked input, as `Tower.read` returns it. `Tower.forward` does not check it again.

    It is a named tuple so that torch treats it as a tree of tensors (FSDP's hooks look into it).

    Attributes:
        values: the maps by view, the token ids, or the input of a user's module.
        mask: (B, T) or (B, L) bool, True at a real frame or token; None: the module decides.
    """

    values: Any
    mask: Tensor | None


def batch_size(values: Any) -> int | None:
    """Return the number of items of a tower's input, or None if it cannot be determined."""
    if isinstance(values, Inputs):
        return batch_size(values.values)
    if isinstance(values, Mapping):
        return batch_size(next(iter(values.values()))) if values else 0
    if isinstance(values, Tensor):
        return len(values) if values.ndim else None
    if isinstance(values, str) or not isinstance(values, Sized):
        return None
    return len(values)
