"""Encoded: many items of one side of a model as pooled features and sequences."""

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.engine.options import check_dense, check_kind, to_path, whole_number
from clipseq.retrieval import files
from clipseq.retrieval.ragged import Ids, Ragged
from clipseq.sequences import Sequences


@attrs.frozen(eq=False, repr=False)
class Encoded:
    """Items of one side of a model, as `CLIP.encode` returns them: no item is padded.

    Indexing takes a whole number (which gives one item, as an `Encoded` of length 1), a slice, a
    list or tensor of whole numbers, or a mask. A slice of neighbours shares memory.

    Attributes:
        pooled: (N, D) pooled features, not normalised.
        steps: the steps of all sequences, ``steps.values`` (S, D), where item i has the rows from
            ``steps.offsets[i]`` to ``steps.offsets[i + 1]``, the last excluded; None if the model
            does not compare sequences.
        ids: the id of each item; by default its place in the list that was encoded.
        side: name of the side that encoded the items, such as "text"; "" if unknown.
        model: fingerprint of the weights of the model that encoded them; "" if unknown.

    Raises:
        TypeError, ValueError: `pooled`, `steps` and `ids` do not fit one another.
    """

    pooled: Float[Tensor, "N D"]
    steps: Ragged | None = None
    ids: Sequence[str] = attrs.field(default=())
    side: str = ""
    model: str = ""

    def __attrs_post_init__(self) -> None:
        check_dense("pooled", self.pooled, values=False)
        if self.steps is not None:
            check_kind("steps", self.steps, Ragged, "Ragged or None")
        for name in ("side", "model"):
            check_kind(name, getattr(self, name), str, "a string")
        if self.pooled.ndim != 2 or not self.pooled.is_floating_point():
            raise ValueError(
                f"pooled must be floating point (N, D), got {self.pooled.dtype} "
                f"{tuple(self.pooled.shape)}"
            )
        count, features = self.pooled.shape
        if self.steps is not None:
            if len(self.steps) != count:
                raise ValueError(
                    f"steps must have one sequence for each of the {count} pooled features, got "
                    f"{len(self.steps)}"
                )
            if self.steps.values.ndim != 2 or self.steps.values.shape[1] != features:
                raise ValueError(
                    f"steps must be (S, {features}), with the D of the pooled features, got "
                    f"{tuple(self.steps.values.shape)}"
                )
        ids = self.ids
        if not isinstance(ids, Ids):
            check_kind("ids", ids, (list, tuple), "a list of strings")
            ids = Ids.of(ids or map(str, range(count)))
            object.__setattr__(self, "ids", ids)
        if len(ids) != count:
            raise ValueError(f"ids must name each of the {count} items, got {len(ids)} ids")

    @classmethod
    def from_sequences(
        cls,
        pooled: Float[Tensor, "N D"],
        sequences: Sequences,
        *,
        ids: Sequence[str] = (),
        side: str = "",
        model: str = "",
    ) -> "Encoded":
        """Return the items of a padded batch, without their padding.

        Args:
            pooled: (N, D) pooled features.
            sequences: the steps, (N, T, D), and their mask.
            ids: id of each item; by default its place.
            side: name of the side that encoded them.
            model: fingerprint of the model that encoded them.

        Raises:
            TypeError, ValueError: see `Encoded`.
        """
        check_kind("sequences", sequences, Sequences, "Sequences")
        steps = Ragged.from_lengths(sequences.values[sequences.mask], sequences.lengths)
        return cls(pooled, steps, ids, side, model)

    @classmethod
    def load(cls, path: str | Path) -> "Encoded":
        """Open a file that `save` wrote.

        The file is mapped into memory: only the parts that are used are read from it. Changing the
        tensors does not change the file.

        Raises:
            DataError: the file is missing, unreadable or corrupt, or `save` did not write it.
        """
        saved = files.read(to_path("path", path))
        steps = None if saved.steps is None else Ragged(*saved.steps)
        return cls(saved.pooled, steps, Ids(Ragged(*saved.ids)), saved.side, saved.model)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, which replaces an existing one only once it is complete.

        Raises:
            OSError: the file cannot be written.
        """
        ids = self.ids if isinstance(self.ids, Ids) else Ids.of(self.ids)
        steps = None if self.steps is None else (self.steps.values, self.steps.offsets)
        text = (ids.text.values, ids.text.offsets)
        files.write(Path(path), files.Saved(self.pooled, steps, text, self.side, self.model))

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: Any) -> "Encoded":
        places = self._places(index)
        pooled = self.pooled[places if isinstance(places, slice) else places.to(self.pooled.device)]
        steps = None if self.steps is None else self.steps.take(places)
        assert isinstance(self.ids, Ids)
        ids = self.ids[places if isinstance(places, slice) else places.cpu()]
        return Encoded(pooled, steps, ids, self.side, self.model)

    def __iter__(self) -> Iterator["Encoded"]:
        return self.batches(1)

    def batches(self, size: int) -> Iterator["Encoded"]:
        """Yield the items in their order, `size` at a time; the last batch may be smaller.

        Raises:
            TypeError: `size` is not a whole number.
            ValueError: `size` is below 1.
        """
        size = whole_number("size", size, least=1)
        return (self[start : start + size] for start in range(0, len(self), size))

    @property
    def lengths(self) -> Int[Tensor, "N"]:
        """Number of steps of each sequence.

        Raises:
            ValueError: the model does not compare sequences.
        """
        return self._ragged().lengths

    def sequences(self, index: Any = None) -> Sequences:
        """Return the sequences at `index` as a batch, padded to the longest of them.

        Args:
            index: as in indexing. None: all items.

        Raises:
            ValueError: the model does not compare sequences.
        """
        ragged = self._ragged()
        places = slice(None) if index is None else self._places(index)
        return ragged.take(places).padded()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Encoded":
        """Return the same items on another device, or in another floating point type.

        Ids stay on the CPU. None keeps the device, or the type.

        Raises:
            TypeError: `device` is not a device, or `dtype` is not a floating point type.
            RuntimeError: the machine does not have that device.
        """
        check_kind("device", device, (str, torch.device, type(None)), "a device")
        check_kind("dtype", dtype, (torch.dtype, type(None)), "a floating point dtype")
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating point dtype, got {dtype}")
        pooled = self.pooled.to(device=device or self.pooled.device, dtype=dtype)
        steps = None
        if self.steps is not None:
            values, offsets = self.steps.values, self.steps.offsets
            device = device or values.device
            steps = Ragged(values.to(device=device, dtype=dtype), offsets.to(device=device))
        return Encoded(pooled, steps, self.ids, self.side, self.model)

    def __repr__(self) -> str:
        count, features = self.pooled.shape
        kept = "pooled only" if self.steps is None else f"{len(self.steps.values)} steps"
        kind = str(self.pooled.dtype).removeprefix("torch.")
        side = f"{self.side}, " if self.side else ""
        return f"Encoded({side}{count} items, D={features}, {kept}, {kind})"

    def _ragged(self) -> Ragged:
        if self.steps is None:
            raise ValueError(
                "the items must have sequences, got pooled features only; encode them with a model "
                "that compares sequences"
            )
        return self.steps

    def _places(self, index: Any) -> slice | Tensor:
        """Return a slice of neighbours, or a tensor of places that are not negative."""
        count = len(self)
        if isinstance(index, slice):
            start, stop, step = index.indices(count)
            return slice(start, stop) if step == 1 else torch.arange(start, stop, step)
        if not isinstance(index, Tensor | list | tuple):
            try:
                number = operator.index(index)
            except TypeError:
                raise TypeError(
                    f"index must be a whole number, a slice, or whole numbers (n,), got {index!r}"
                ) from None
            # An IndexError here ends a loop over the items.
            place = range(count)[number]
            return slice(place, place + 1)
        try:
            places = torch.as_tensor(index)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"index must be whole numbers (n,), got {index!r}") from error
        if places.dtype == torch.bool:
            if places.shape != (count,):
                raise IndexError(f"a mask must be ({count},), got {tuple(places.shape)}")
            return places.nonzero().flatten()
        numbers = not (places.is_floating_point() or places.is_complex())
        if places.ndim != 1 or (len(places) and not numbers):
            raise IndexError(
                f"index must be whole numbers (n,), got {places.dtype} {tuple(places.shape)}"
            )
        places = places.long()
        if bool(((places < -count) | (places >= count)).any()):
            raise IndexError(f"index must be below {count}, the number of items, got {index}")
        return torch.where(places < 0, places + count, places)
