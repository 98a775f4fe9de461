"""A tower over a batch larger than memory: a few items at a time, in forward and in backward."""

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from clipseq.sequences import Sequences, join


def batch_size(values: Any) -> int | None:
    """Number of items of a tower's input, or None for what only the user's own tower can tell."""
    if isinstance(values, Mapping):
        return batch_size(next(iter(values.values()))) if values else 0
    if isinstance(values, Tensor):
        return len(values) if values.ndim else None
    if isinstance(values, str) or not isinstance(values, Sized):
        return None
    return len(values)


def encode_in_micro_batches(
    tower: nn.Module, values: Any, size: int, *, sequences: bool, **along: Any
) -> tuple[Float[Tensor, "B D"], Sequences | None]:
    """``tower(values, sequences=sequences, **along)``, with the memory that `size` items need.

    Gradient caching (GradCache, arXiv:2101.06983). Forward keeps of each micro-batch what comes
    out of it; backward encodes it once more, with the same dropout and under the same autocast,
    and goes through it before it turns to the next. To autograd the whole is one graph: every
    parameter's gradient is complete once, after the last micro-batch, so DDP reduces it once.
    Without gradients the micro-batches are only encoded.

    Cost: a second forward of the tower. Memory: the graph of one micro-batch, and what comes out
    of all. What depends on other items of a batch (batch norm) sees those of the micro-batch.

    Args:
        tower: any of the towers; each item must be encoded by itself.
        values: the tower's input: a tensor, a dictionary of them, or a list.
        size: most items of a micro-batch.
        sequences: whether the tower is to return the sequences too.
        along: further arguments, such as a mask: None, or one row for each item.

    Raises:
        ValueError: the input cannot be cut into items; and what the tower raises, whose items
            are then counted from the start of the micro-batch (a note says where that is).
    """
    batch = batch_size(values)
    if batch is None:
        raise ValueError(
            f"micro_batch={size} cannot cut a {type(values).__name__} into items: give the "
            f"{type(tower).__name__} a tensor, a dictionary of them, or a list; or set "
            f"micro_batch to None"
        )
    device = next((p.device for p in tower.parameters()), torch.device("cpu"))
    # checkpoint replays the dropout of the devices that it finds among its arguments, and a list
    # of captions is on none.
    anchor = torch.empty(0, device=device)

    def encode(anchor: Tensor, values: Any, along: Mapping[str, Any]) -> tuple[Any, Any]:
        return tower(values, sequences=sequences, **along)

    pooled: list[Tensor] = []
    tokens: list[Sequences] = []
    for start, inputs in _micro_batches((values, along), batch, size):
        # With autocast's cache all micro-batches would share one half precision copy of a weight,
        # and their gradients would be summed in half precision too.
        torch.clear_autocast_cache()
        try:
            if torch.is_grad_enabled():
                # Hooks on modules (FSDP2's, the user's) then see a whole forward in backward too.
                with set_checkpoint_early_stop(False):
                    output = checkpoint(encode, anchor, *inputs, use_reentrant=False)
            else:
                output = encode(anchor, *inputs)
        except Exception as error:
            if start:
                error.add_note(f"(micro_batch={size}: items are counted from item {start})")
            raise
        pooled.append(output[0])
        if output[1] is not None:
            tokens.append(output[1])
    return torch.cat(pooled), join(tokens) if tokens else None


def _micro_batches(inputs: Any, batch: int, size: int) -> Iterator[tuple[int, Any]]:
    for start in range(0, batch, size):
        yield start, tuple(_items(value, start, start + size, batch) for value in inputs)


def _items(values: Any, start: int, stop: int, batch: int) -> Any:
    """The items from `start` to `stop`; what has none, such as a number, as it is."""
    if isinstance(values, Mapping):
        return {name: _items(inner, start, stop, batch) for name, inner in values.items()}
    size = batch_size(values)
    if size is None:
        return values
    if size != batch:
        raise ValueError(
            f"micro_batch needs one row for each of the {batch} items in everything a tower is "
            f"given; a {type(values).__name__} has {size}: set micro_batch to None"
        )
    return values[start:stop]
