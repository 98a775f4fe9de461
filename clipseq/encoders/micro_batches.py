"""Gradient caching: a tower over a batch larger than memory, a few items at a time."""

from collections.abc import Iterator, Mapping
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
    all. A layer that depends on other items (batch norm) sees only those of the micro-batch.

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
                with set_checkpoint_early_stop(False):
                    output = checkpoint(encode, anchor, some, use_reentrant=False)
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
