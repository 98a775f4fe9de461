"""Checks of arguments and options that several rooms and similarities share."""

import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter


def positive_integer(value: object) -> int | None:
    """Return `value` as an int if it is a positive integer, numpy's included, and None otherwise.

    Rejects True, since nobody means 1 by it, tensors, whose value may change, and numbers above
    `LARGEST`.
    """
    if isinstance(value, bool | Tensor) or not isinstance(value, SupportsIndex):
        return None
    try:
        number = operator.index(value)
    except TypeError:  # an array that is not one integer
        return None
    return number if 0 < number <= LARGEST else None


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


LARGEST = 2**31 - 1
"""Largest count that an argument may have; more would overflow in a library that gets it."""


def check_kind(
    name: str, value: object, kinds: type | tuple[type, ...], what: str, hint: str = ""
) -> None:
    """Raise TypeError unless `value` is an instance of `kinds`.

    Args:
        name: name of the argument.
        value: the argument.
        kinds: the classes that it may have.
        what: the same in words, such as "a tensor".
        hint: what to do about it.
    """
    # A tensor without axes counts as iterable for Python.
    if not isinstance(value, kinds) or (kinds is Iterable and isinstance(value, Tensor)):
        end = f"; {hint}" if hint else ""
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}{end}")


def check_dense(name: str, value: object, *, values: bool = True) -> None:
    """Raise TypeError unless `value` is a tensor that is neither sparse nor nested.

    Args:
        name: name of the argument.
        value: the argument.
        values: whether it must hold values, which tensors on the device meta do not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got a {kind} tensor; convert it first")
    # A subclass may be on the device meta and hold its values elsewhere.
    if values and value.is_meta and type(value) in (Tensor, Parameter):
        raise TypeError(f"{name} must be a tensor that holds values, got one on the device meta")


def whole_number(name: str, value: Any, *, least: int = 0, most: int = LARGEST) -> int:
    """Return `value` as an int; numpy's integers are accepted, True is not.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below `least` or above `most`.
    """
    number = None
    if not isinstance(value, bool | Tensor) and isinstance(value, SupportsIndex):
        try:
            number = operator.index(value)
        except TypeError:  # an array that is not one integer
            number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")
    return number


def finite_number(name: str, value: Any) -> float:
    """Return `value` as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is NaN or infinite.
    """
    number = single_number(value)
    if number is None and not (isinstance(value, float | np.floating) and value != value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if number is None or number in (float("inf"), float("-inf")):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return number


def to_path(name: str, value: Any) -> Path:
    """Return `value`, a string or a path, as a path.

    Raises:
        TypeError: it is something else.
        ValueError: it is empty, or holds what no file's name can.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a path, got {value!r}")
    try:
        os.fsencode(path)
        possible = bool(path) and "\0" not in path
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"{name} must be a path, got {path!r}")
    return Path(path)


def check_text(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a string, and ValueError if it is not Unicode text."""
    check_kind(name, value, str, "a string")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} must be Unicode text, got {value!r} with half of a surrogate pair; "
            "write the whole character"
        ) from None
