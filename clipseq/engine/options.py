"""Checks of options that several similarities take."""

import operator
from typing import Any, SupportsFloat, SupportsIndex

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


def single_number(value: Any) -> float | None:
    """Return `value` as a float if it is one number, numpy's and torch's included, else None.

    Rejects True, since nobody means 1 by it, strings, arrays with axes, and NaN.
    """
    kind: Any = getattr(getattr(value, "dtype", None), "kind", "")
    axes: Any = getattr(value, "ndim", 0)
    if isinstance(value, bool | str | bytes) or kind in ("b", "c") or axes:
        return None
    if not isinstance(value, SupportsFloat) or (
        isinstance(value, Tensor) and (value.is_complex() or value.is_meta or value.is_sparse)
    ):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if number != number else number
