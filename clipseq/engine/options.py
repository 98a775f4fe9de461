"""What the options of similarities have in common."""

import operator
from typing import SupportsIndex

from torch import Tensor


def positive_integer(value: object) -> int | None:
    """`value` as an int, numpy's integers too; None for what is no positive integer.

    True is none, as no one who writes it means 1, and neither is a tensor, which may hold it.
    """
    if isinstance(value, bool | Tensor) or not isinstance(value, SupportsIndex):
        return None
    try:
        number = operator.index(value)
    except TypeError:  # an array that is not one integer
        return None
    return number if number > 0 else None
