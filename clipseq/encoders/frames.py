"""Checks of the frames of a batch of maps: the mask of real frames, and finite values in them."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from clipseq.engine.options import check_dense


def frame_mask(
    maps: Mapping[str, Tensor], lengths: Any, mask: Tensor | None, *, name: str
) -> Bool[Tensor, "B T"]:
    """Return the checked mask of real frames, from lengths or a mask; all True without either.

    Lengths and masks are checked on their own device, so on the CPU without a synchronisation.

    Args:
        maps: the maps (B, ..., T) that the frames belong to.
        lengths: (B,) whole numbers, or None.
        mask: (B, T) bool, or None.
        name: the side's name, for error texts.

    Raises:
        TypeError: lengths that are not whole numbers, a mask that is not a bool tensor.
        ValueError: both given, a shape or value that does not fit, or an item with no real frame.
    """
    values = next(iter(maps.values()))
    batch, frames = values.shape[0], values.shape[-1]
    if lengths is not None and mask is not None:
        raise ValueError(
            f"{name}_lengths must be None if {name}_mask is given, got both; leave one of them out"
        )
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name}_mask must be a bool tensor, True at a real frame, got {kind}")
        if mask.shape != (batch, frames):
            raise ValueError(
                f"{name}_mask must be {(batch, frames)}, (B, T), got {tuple(mask.shape)}"
            )
        _check_occupied(mask.any(1), name)
        return mask.to(values.device)
    if lengths is None:
        return torch.ones(batch, frames, dtype=torch.bool, device=values.device)
    try:
        lengths = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name}_lengths must be whole numbers, one for each item, got {lengths!r}"
        ) from error
    check_dense(f"{name}_lengths", lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{name}_lengths must be whole numbers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"{name}_lengths must be {(batch,)}, (B,), got {tuple(lengths.shape)}")
    if bool((lengths > frames).any()):
        item = int((lengths > frames).nonzero()[0])
        raise ValueError(
            f"{name}_lengths must be at most {frames}, the frames that the maps hold, "
            f"got {int(lengths[item])} for item {item}"
        )
    _check_occupied(lengths > 0, name)
    lengths = lengths.to(values.device)
    return torch.arange(frames, device=values.device) < lengths[:, None]


def _check_occupied(occupied: Bool[Tensor, "B"], name: str) -> None:
    if not bool(occupied.all()):
        item = int((~occupied).nonzero()[0])
        raise ValueError(
            f"{name} item {item} must have at least one real frame, got none; "
            f"leave it out of the batch"
        )


def first_not_finite(
    maps: Mapping[str, Tensor], mask: Bool[Tensor, "B T"] | None
) -> tuple[str, int] | None:
    """Return the view and item of the first NaN or infinity in a real frame, or None.

    A map that is not (B, ..., T) with the mask's B and T is searched as a whole.
    """
    bad = {}
    for view, values in maps.items():
        if mask is not None and mask.shape == (len(values), values.shape[-1]):
            over_bins = mask.view(len(mask), *[1] * (values.ndim - 2), -1)
            values = values.masked_fill(~over_bins.to(values.device), 0.0)
        bad[view] = ~values.isfinite().flatten(1).all(1)
    if not bad or not bool(torch.cat(list(bad.values())).any()):
        return None
    view, items = next((view, items) for view, items in bad.items() if bool(items.any()))
    return view, int(items.nonzero()[0])
