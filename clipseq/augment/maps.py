"""Checks of what the augmentations get."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipseq.engine.options import LARGEST, check_kind, whole_number


def check_map(values: Any) -> None:
    """Raise TypeError or ValueError unless `values` is a map (F, T) of real numbers."""
    check_kind("values", values, np.ndarray, "an array (F, T)")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"values must hold real numbers, got {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"values must have the shape (F, T), with a bin and a frame at least, got "
            f"{values.shape}"
        )


def check_generator(rng: Any) -> None:
    """Raise TypeError unless `rng` is a random generator of NumPy."""
    check_kind("rng", rng, np.random.Generator, "a numpy.random.Generator")


def check_range(start: Any, stop: Any) -> tuple[int, int]:
    """Return `start` and `stop` as whole numbers; raise TypeError or ValueError otherwise."""
    first = whole_number("start", start, least=-LARGEST)
    return first, whole_number("stop", stop, least=-LARGEST)


def check_spans(spans: Any) -> list[tuple[int, int]]:
    """Return spans as pairs of whole numbers; raise TypeError or ValueError otherwise."""
    check_kind("spans", spans, Sequence, "a list of (start, stop)")
    pairs = []
    for span in spans:
        if not isinstance(span, list | tuple) or len(span) != 2:
            raise TypeError(f"a span must be (start, stop), got {span!r}")
        pairs.append(check_range(*span))
    return pairs
