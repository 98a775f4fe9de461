"""Gradient caching: a tower over a batch larger than memory, a few items at a time."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from clipseq.encoders.inputs import Inputs, batch_size
from clipseq.encoders.tower import Tower
from clipseq.sequences import Sequences, join


def encode_in_micro_batches(
    tower: Tower, inputs: Inputs, size: int, *, sequences: bool
) -> tuple[Float[Tensor, "B D"], Sequences | None]:
    """Return ``tower(inputs, sequences=sequences)``, with the memory that `size` items need.

    This is gradient caching (GradCache, arXiv:2101.06983). Forward keeps only the outputs of each
    micro-batch; backward encodes it again, with the same dropout and autocast, and differentiates
    it before the next one. To autograd, all micro-batches are one graph: a parameter's gradient is
    complete only after the last micro-batch, so DDP reduces it once. Without gradients, the
    micro-batches are only encoded.

    Cost: a second forward of the tower. Memory: the graph of one micro-batch, and the outputs of
    all. A layer that depends on other items (batch norm) sees only those of the micro-batch. Its
    buffers change once for each micro-batch: the second forward starts from the buffers of the
    first, and leaves none of its own.

    Args:
        tower: the tower; each item must be encoded by itself.
        inputs: the checked batch.
        size: largest number of items in a micro-batch.
        sequences: whether the tower returns the sequences too.

    Raises:
        ValueError: the input cannot be cut into items. Errors of a user's module number the items
            from the start of the micro-batch; a note on the error gives that start.
    """
    batch = batch_size(inputs)
    if batch is None:
        raise ValueError(
            f"{tower.name} must be a tensor, a dictionary of them, or a list where "
            f"micro_batch={size} cuts it into items, got {type(inputs.values).__name__}; "
            f"set micro_batch to None"
        )
    device = next((p.device for p in tower.parameters()), torch.device("cpu"))
    # checkpoint replays dropout only for the devices of its tensor arguments, and a list of
    # captions has no device.
    anchor = torch.empty(0, device=device)

    def encode(anchor: Tensor, inputs: Inputs) -> tuple[Any, Any]:
        return tower(inputs, sequences=sequences)

    pooled: list[Tensor] = []
    tokens: list[Sequences] = []
    for start, untrimmed in _micro_batches(inputs, batch, size):
        some = tower.trim(untrimmed)
        # With autocast's cache, all micro-batches would share one half-precision copy of a weight,
        # and their gradients would be summed in half precision.
        torch.clear_autocast_cache()
        try:
            if torch.is_grad_enabled():
                # Hooks on modules (FSDP2's or the user's) need a whole forward in backward too.
                replay = _Replay(tower)
                with set_checkpoint_early_stop(False):
                    output = checkpoint(
                        encode, anchor, some, use_reentrant=False, context_fn=replay.contexts
                    )
                replay.keep_changed()
            else:
                output = encode(anchor, some)
        except Exception as error:
            if start:
                error.add_note(f"(micro_batch={size}: items are counted from item {start})")
            raise
        pooled.append(output[0])
        if output[1] is not None:
            tokens.append(output[1])
    return torch.cat(pooled), join(tokens) if tokens else None


class _Replay:
    """The buffers of a tower before one micro-batch, for encoding it again in backward.

    Only those that the micro-batch changes are kept, such as the statistics of batch norm.
    """

    def __init__(self, tower: Tower) -> None:
        self._earlier = [(b, b.detach().clone()) for b in tower.buffers()] if tower.training else []

    def keep_changed(self) -> None:
        """Forget the buffers that the micro-batch left unchanged."""
        self._earlier = [
            (buffer, value) for buffer, value in self._earlier if not torch.equal(buffer, value)
        ]

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the first forward and of the one in backward."""
        return nullcontext(), self._again()

    @contextmanager
    def _again(self) -> Iterator[None]:
        later = [(buffer, buffer.detach().clone()) for buffer, _ in self._earlier]
        _write(self._earlier)
        try:
            yield
        finally:
            _write(later)


def _write(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in values:
        # Graphs of other micro-batches may hold the buffer: to them it has not changed.
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(buffer):
            buffer.copy_(value)


def _micro_batches(inputs: Inputs, batch: int, size: int) -> Iterator[tuple[int, Inputs]]:
    for start in range(0, batch, size):
        yield start, Inputs(*(_items(part, start, start + size, batch) for part in inputs))


def _items(values: Any, start: int, stop: int, batch: int) -> Any:
    """Return the items from `start` to `stop`; a value without items, such as a number, is kept."""
    if isinstance(values, Mapping):
        return {name: _items(inner, start, stop, batch) for name, inner in values.items()}
    size = batch_size(values)
    if size is None:
        return values
    if size != batch:
        raise ValueError(
            f"a tower's input must have one row for each of the {batch} items where micro_batch "
            f"cuts it, got a {type(values).__name__} with {size}; set micro_batch to None"
        )
    return values[start:stop]
