"""Checks of options that several similarities take."""

import operator
from typing import SupportsIndex

from torch import Tensor


def positive_integer(value: object) -> int | None:
    """Return `value` as an int if it is a positive integer, numpy's included, and None otherwise.

    Rejects True, since nobody means 1 by it, and tensors, whose value may change.
    """
    if isinstance(value, bool | Tensor) or not isinstance(value, SupportsIndex):
        return None
    try:
        number = operator.index(value)
    except TypeError:  # an array that is not one integer
        return None
    return number if number > 0 else None
