"""Items of different lengths in one flat tensor: the steps of sequences, the bytes of ids."""

from collections.abc import Iterable, Sequence
from typing import overload

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from clipseq.engine.options import check_dense, check_text
from clipseq.sequences import Sequences

Index = slice | Tensor
"""Places of items: a slice with step 1, or a tensor of whole numbers that are not negative."""


@attrs.frozen(eq=False, repr=False)
class Ragged:
    """N items of different lengths, one after the other.

    Attributes:
        values: (S, ...) the rows of all items.
        offsets: (N + 1,) item i has the rows from ``offsets[i]`` to ``offsets[i + 1]``, the last
            excluded.
    """

    values: Tensor
    offsets: Int[Tensor, "_"]

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Int[Tensor, "N"]) -> "Ragged":
        """Cut the rows of `values` into items of these lengths.

        Raises:
            TypeError: `values` is not a tensor, or `lengths` is not one of whole numbers.
            ValueError: `lengths` is not (N,).
        """
        check_dense("values", values, values=False)
        check_dense("lengths", lengths)
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be whole numbers, got {lengths.dtype}")
        if lengths.ndim != 1:
            raise ValueError(f"lengths must have the shape (N,), got {tuple(lengths.shape)}")
        return cls(values, offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, "N"]:
        """Number of rows of each item."""
        return self.offsets.diff()

    def take(self, index: Index) -> "Ragged":
        """Return the items at `index`; a slice of neighbours copies no row."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            offsets = self.offsets[start : max(start, stop) + 1]
            first, last = int(offsets[0]), int(offsets[-1])
            return Ragged(self.values[first:last], offsets - first)
        index = index.to(self.offsets.device)
        lengths = self.lengths[index]
        offsets = offsets_of(lengths)
        rows = torch.arange(int(offsets[-1]), device=self.offsets.device)
        rows += torch.repeat_interleave(self.offsets[index] - offsets[:-1], lengths)
        return Ragged(self.values[rows], offsets)

    def padded(self) -> Sequences:
        """Return sequences as one batch, padded to the longest, and to at least one step."""
        lengths = self.lengths
        longest = max(1, int(lengths.max())) if len(lengths) else 1
        mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
        values = self.values.new_zeros(*mask.shape, self.values.shape[1])
        values[mask] = self.values
        return Sequences(values, mask)


def offsets_of(lengths: Int[Tensor, "N"]) -> Int[Tensor, "_"]:
    """Return where each item starts, and where the last one ends."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


class Ids(Sequence[str]):
    """The ids of many items, each made a string only when it is read.

    A list of a million strings takes a second to make; the ids of a file stay in the file.

    Args:
        text: the UTF-8 bytes of each id.
    """

    def __init__(self, text: Ragged) -> None:
        self.text = text

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Ids":
        """Return the ids of an iterable of strings.

        Raises:
            TypeError: an id is not a string.
            ValueError: an id is not Unicode text.
        """
        encoded = []
        for name in ids:
            check_text("ids", name)
            encoded.append(name.encode())
        lengths = torch.tensor([len(name) for name in encoded], dtype=torch.int64)
        whole = bytearray(b"".join(encoded))
        # frombuffer rejects an empty buffer.
        values = torch.frombuffer(whole, dtype=torch.uint8) if whole else torch.empty(0).byte()
        return cls(Ragged.from_lengths(values, lengths))

    def __len__(self) -> int:
        return len(self.text)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: Index) -> "Ids": ...

    def __getitem__(self, index: int | Index) -> "str | Ids":
        if not isinstance(index, int):
            return Ids(self.text.take(index))
        place = range(len(self))[index]
        start, stop = (int(offset) for offset in self.text.offsets[place : place + 2])
        return bytes(self.text.values[start:stop].numpy()).decode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list's

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[i]) for i in range(min(3, len(self))))
        return f"Ids([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"
