"""Groups of sequences of similar lengths, so that tiles of short sequences are small."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor


class Group(NamedTuple):
    """Sequences of similar lengths, from the longest to the shortest.

    Attributes:
        items: their positions in the batch.
        lengths: their lengths, as Python numbers.
    """

    items: Int[Tensor, " n"]
    lengths: list[int]

    @property
    def steps(self) -> int:
        """Length of the longest sequence, to which a tile is cut."""
        return self.lengths[0]


def longest_first(lengths: Int[Tensor, " B"]) -> Group:
    """Return the whole batch as one group; sequences of equal length keep their order."""
    order = lengths.argsort(descending=True, stable=True)
    return Group(order, lengths[order].tolist())


def group_by_length(
    lengths: Int[Tensor, " B"], size: Callable[[int], int], *, multiple: int | None = None
) -> list[Group]:
    """Cut a batch, sorted from the longest sequence to the shortest, into groups of neighbours.

    Args:
        lengths: number of steps of each sequence.
        size: called with the length of a group's longest sequence; returns the largest number of
            sequences that the group may have.
        multiple: if given, all lengths in a group round up to the same multiple of it, and `size`
            is called with that multiple. 1 makes groups of equal lengths.

    Cost: one synchronisation of the device, for the order and the lengths.
    """
    order, descending = longest_first(lengths)
    widths = descending
    if multiple is not None:
        widths = [-(-length // multiple) * multiple for length in descending]
    sizes: list[int] = []
    first = 0
    while first < len(widths):
        count = min(size(widths[first]), len(widths) - first)
        if multiple is not None:
            count = widths[first : first + count].count(widths[first])
        sizes.append(count)
        first += count
    groups, first = [], 0
    for items in order.split(sizes):
        groups.append(Group(items, descending[first : first + len(items)]))
        first += len(items)
    return groups
