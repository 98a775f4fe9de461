"""Counts of the bytes that this process sends and of the pairs that it scores."""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs


@attrs.define
class Traffic:
    """The counts of one process.

    Attributes:
        blocks: bytes of blocks of y that it sent.
        gradients: bytes of gradients of y that it sent.
        pairs: pairs that it scored in forward.
        pairs_again: pairs that it scored again in backward.
        held: largest number of sequences of y that it held at one time, its own included.
    """

    blocks: int = 0
    gradients: int = 0
    pairs: int = 0
    pairs_again: int = 0
    held: int = 0


_counting: list[Traffic] = []


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count the bytes that this process's losses send and the pairs they score in a `with` block.

    Small reductions (sizes, log-sum-exps of columns, the loss) are not counted.
    """
    traffic = Traffic()
    _counting.append(traffic)
    try:
        yield traffic
    finally:
        _counting.remove(traffic)


def add(**counts: int) -> None:
    """Add to the counts of every open `count_traffic`."""
    for traffic in _counting:
        for name, count in counts.items():
            setattr(traffic, name, getattr(traffic, name) + count)


def note_held(sequences: int) -> None:
    """Note the number of sequences of y that are held at this moment."""
    for traffic in _counting:
        traffic.held = max(traffic.held, sequences)
