"""Training batches: checks of keys, sizes and values."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clipseq.encoders import Inputs, Tower
from clipseq.encoders.frames import first_not_finite
from clipseq.encoders.inputs import batch_size
from clipseq.errors import find_closest


def read_batch(
    batch: Any, batch_idx: int, x: Tower, y: Tower, *, micro_batch: int | None
) -> tuple[Inputs, Inputs]:
    """Check both sides of a batch once, and return the inputs that the towers encode.

    Raises:
        TypeError, ValueError: see `CLIP.training_step`.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"batch {batch_idx} must be a dictionary with {x.name!r} and {y.name!r}, "
            f"got {type(batch).__name__}"
        )
    for tower in (x, y):
        if tower.name not in batch:
            raise ValueError(
                f"batch {batch_idx} must have the key {tower.name!r}, got "
                f"{', '.join(map(str, batch)) or 'no key'}{_misspelt(tower.name, batch)}"
            )
    sizes = {tower.name: batch_size(batch[tower.name]) for tower in (x, y)}
    _check_keys(batch, batch_idx, x, y)
    for name, size in sizes.items():
        if size == 0:
            raise ValueError(f"batch {batch_idx} must hold at least one item, got no {name!r}")
    if None not in sizes.values() and sizes[x.name] != sizes[y.name]:
        raise ValueError(
            f"batch {batch_idx} must hold as many {x.name!r} as {y.name!r}, since {x.name}[i] "
            f"belongs to {y.name}[i], got {sizes[x.name]} and {sizes[y.name]}"
        )
    values = {x.name: batch[x.name], y.name: _with_negatives(batch, batch_idx, y)}
    read = []
    for tower in (x, y):
        inputs = tower.read(
            values[tower.name],
            lengths=batch.get(f"{tower.name}_lengths") if tower.is_signal else None,
            mask=batch.get(f"{tower.name}_mask"),
        )
        _check_finite(tower, inputs, batch_idx, micro_batch)
        read.append(inputs)
    return read[0], read[1]


def _with_negatives(batch: Mapping[str, Any], batch_idx: int, y: Tower) -> Any:
    """Return the y of a batch, followed by its extra negatives if it has any."""
    values, key = batch[y.name], f"{y.name}_negatives"
    negatives = batch.get(key)
    if negatives is None:
        return values
    for name, captions in ((y.name, values), (key, negatives)):
        if not isinstance(captions, list | tuple):
            raise TypeError(
                f"batch {batch_idx} must hold {name!r} as a list of captions if there are extra "
                f"negatives, got {type(captions).__name__}"
            )
    return [*values, *negatives]


def _misspelt(name: str, batch: Mapping[Any, Any]) -> str:
    close = find_closest(name, [key for key in batch if isinstance(key, str)])
    return "" if close is None else f"; rename the key {close!r}"


def _check_finite(tower: Tower, inputs: Inputs, batch_idx: int, micro_batch: int | None) -> None:
    """Raise ValueError naming the first view and item with NaN or infinity in a real frame."""
    maps, mask = tower.maps(inputs), inputs.mask
    # A few items at a time: the check takes as much memory as the maps that it checks.
    batch = max((len(values) for values in maps.values()), default=0)
    size = micro_batch or max(batch, 1)
    for start in range(0, batch, size):
        some = {view: values[start : start + size] for view, values in maps.items()}
        found = first_not_finite(some, None if mask is None else mask[start : start + size])
        if found is not None:
            view, item = found
            raise ValueError(
                f"batch {batch_idx}: {tower.name} view {view!r} must be finite in real frames, got "
                f"NaN or infinity in item {start + item}; correct or leave out that recording "
                f"(padded frames may hold any values)"
            )


def _check_keys(batch: Mapping[str, Any], batch_idx: int, x: Tower, y: Tower) -> None:
    # With a misspelt key of lengths or a mask, the model would train on padding. Only such a key is
    # an error: "radar_path" and "text_id" may be in a batch, and so may "lengths" if there is a
    # mask, or if the text is captions.
    optional = (*x.optional_keys, *y.optional_keys)
    misnamed = _misnamed(x, y)
    for key, value in batch.items():
        if not isinstance(key, str) or key in (*optional, x.name, y.name):
            continue
        meant = misnamed.get(key) or find_closest(key, optional, cutoff=0.88)
        if meant is None or not _may_be(meant, value):
            continue
        tower = x if meant in x.optional_keys else y
        if any(known in batch for known in tower.optional_keys):
            continue
        if not tower.is_signal and not isinstance(batch[tower.name], Tensor):
            continue  # captions need no mask
        raise ValueError(
            f"batch {batch_idx} must not have the unknown key {key!r}: did you mean {meant!r}? "
            f"(optional keys: {', '.join(optional)}); rename it, or leave it out"
        )


def _misnamed(x: Tower, y: Tower) -> dict[str, str]:
    """Return likely wrong names of the optional keys of the first signal and of the text."""
    meant: dict[str, str] = {}
    signal = next((tower for tower in (x, y) if tower.is_signal), None)
    if signal is not None:
        lengths = f"{signal.name}_lengths"
        meant |= dict.fromkeys(("length", "lengths", f"{signal.name}_len"), lengths)
        meant |= dict.fromkeys(("mask", "masks"), f"{signal.name}_mask")
    text = next((tower for tower in (y, x) if not tower.is_signal), None)
    if text is not None:
        meant["attention_mask"] = f"{text.name}_mask"
    return meant


def _may_be(key: str, value: object) -> bool:
    """Return True if `value` could be lengths or a mask, whichever `key` stands for."""
    if isinstance(value, Tensor):
        dimensions = 1 if key.endswith("_lengths") else 2
        return value.ndim == dimensions and not value.is_floating_point()
    return isinstance(value, list | tuple) and all(isinstance(item, int) for item in value)
