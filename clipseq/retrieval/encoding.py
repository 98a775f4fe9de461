"""Encoding of any number of items with one side of a model, in batches of similar lengths."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipseq.encoders.eval_mode import eval_mode
from clipseq.engine.options import whole_number
from clipseq.errors import suggest
from clipseq.retrieval.encoded import Encoded
from clipseq.retrieval.fingerprint import fingerprint
from clipseq.retrieval.items import Items, read_items
from clipseq.retrieval.ragged import Ragged, offsets_of
from clipseq.sequences import Sequences

if TYPE_CHECKING:
    from clipseq.model import CLIP

Progress = Callable[[int, int], object]
"""A function that is called with the number of items that are done, and of all items."""


@torch.no_grad()
def encode(
    model: "CLIP",
    name: str,
    items: Any,
    *,
    batch_size: int = 64,
    progress: bool | Progress = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = torch.float16,
) -> Encoded:
    """Encode items with the side `name`; see `CLIP.encode`."""
    if not isinstance(name, str) or name not in model.names:
        raise ValueError(
            f"name must be one of {', '.join(model.names)}, the sides of the model, got {name!r}"
            f"{suggest(name, model.names)}"
        )
    batch_size = whole_number("batch_size", batch_size, least=1)
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point or None, got {dtype}")
    tower = model.towers[model.names.index(name)]
    source = read_items(model, tower, items)
    report = _Line(f"encoding {name}") if progress is True else progress or _ignore
    kept = torch.device("cpu") if device is None else torch.device(device)
    parts: list[_Part] = []
    done, total = 0, len(source.lengths)
    with eval_mode(model):
        for places in source.batches(batch_size):
            values, lengths = source.load(places)
            pooled, sequences = model.encode_batch(name, values, lengths=lengths)
            parts.append(_Part.of(places, pooled, sequences, kept, dtype))
            done += len(places)
            report(done, total)
    return _joined(parts, source, name, fingerprint(model))


class _Part:
    """The result of one batch, without padding, as it is kept until all are joined."""

    def __init__(
        self, places: Tensor, pooled: Tensor, steps: Tensor | None, lengths: Tensor | None
    ) -> None:
        self.places, self.pooled, self.steps, self.lengths = places, pooled, steps, lengths

    @classmethod
    def of(
        cls,
        places: list[int],
        pooled: Tensor,
        sequences: Sequences | None,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> "_Part":
        kept, there = _kept(pooled, device, dtype), torch.tensor(places).to(device)
        if sequences is None:
            return cls(there, kept, None, None)
        steps = _kept(sequences.values[sequences.mask], device, dtype)
        return cls(there, kept, steps, sequences.lengths.to(device))


def _kept(values: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    kept = values.to(device=device, dtype=dtype)
    if kept.dtype != values.dtype and not bool(kept.isfinite().all() | ~values.isfinite().all()):
        raise ValueError(
            f"dtype must have room for features of up to {float(values.abs().max()):.3g}, got "
            f"{dtype}; pass torch.bfloat16 or torch.float32"
        )
    return kept


def _joined(parts: list[_Part], source: Items, name: str, model: str) -> Encoded:
    """Put the items in the order of the caller, one part after the other, freeing each."""
    first = parts[0]
    total, device = len(source.lengths), first.pooled.device
    pooled = first.pooled.new_empty(total, first.pooled.shape[1])
    for part in parts:
        pooled[part.places] = part.pooled
    steps = None
    if first.lengths is not None and first.steps is not None:
        lengths = torch.empty(total, dtype=torch.int64, device=device)
        for part in parts:
            assert part.lengths is not None
            lengths[part.places] = part.lengths
        offsets = offsets_of(lengths)
        values = first.steps.new_empty(int(offsets[-1]), first.steps.shape[1])
        while parts:
            part = parts.pop()
            assert part.steps is not None
            assert part.lengths is not None
            rows = torch.arange(len(part.steps), device=device)
            starts = offsets[part.places] - offsets_of(part.lengths)[:-1]
            values[rows + torch.repeat_interleave(starts, part.lengths)] = part.steps
        steps = Ragged(values, offsets)
    if total == len(source.place) and bool((source.place == torch.arange(total)).all()):
        return Encoded(pooled, steps, source.ids, name, model)
    place = source.place.to(device)
    steps = None if steps is None else steps.take(place)
    return Encoded(pooled[place], steps, source.ids, name, model)


def _ignore(done: int, total: int) -> None:
    pass


class _Line:
    """One line on a terminal that shows how many items are done; nothing in a file."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __call__(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        end = "\n" if done == total else ""
        sys.stderr.write(f"\r{self._label}: {done}/{total}{end}")
        sys.stderr.flush()
