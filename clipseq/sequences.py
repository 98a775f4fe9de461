"""Batches of sequences of different lengths, and the alignment of two of them."""

from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipseq.engine import zeroed
from clipseq.engine.options import check_dense


class Sequences(NamedTuple):
    """A batch of sequences: `values` (B, T, D) and `mask` (B, T), True at a real step.

    The padded steps of `values` must be zero; code that constructs `Sequences` directly has to
    ensure this. It is a named tuple so that torch treats it as a tree of tensors (autograd,
    compile, export, and the hooks of DDP and FSDP look into it).
    """

    values: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]

    @classmethod
    def from_tensor(cls, values: Tensor, mask: Tensor | None = None) -> "Sequences":
        """Wrap `values` and set padded steps to zero; without a mask, every step is real.

        Args:
            values: (B, T, D), floating point.
            mask: (B, T) bool, True at a real step.

        Raises:
            TypeError: `values` is not a dense floating point tensor, or `mask` not a bool one.
            ValueError: a wrong number of axes; the shapes or the devices do not fit.
        """
        check_dense("values", values, values=False)
        if not values.is_floating_point():
            raise TypeError(f"values must be floating point, got {values.dtype}")
        if values.ndim != 3:
            raise ValueError(f"values must have the shape (B, T, D), got {tuple(values.shape)}")
        if mask is None:
            return cls(values, values.new_ones(values.shape[:2], dtype=torch.bool))
        check_dense("mask", mask, values=False)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True at a real step, got {mask.dtype}")
        if mask.shape != values.shape[:2]:
            raise ValueError(
                f"mask must have the shape {tuple(values.shape[:2])} of the first two axes of "
                f"values, got {tuple(mask.shape)}"
            )
        if mask.device != values.device:
            raise ValueError(
                f"mask must be on the device of values, {values.device}, got {mask.device}"
            )
        return cls(zeroed(values, mask), mask)

    @property
    def lengths(self) -> Int[Tensor, "B"]:
        """Number of real steps of each sequence."""
        return self.mask.sum(1)


def pad(items: Sequence[Tensor]) -> Sequences:
    """Make one batch of sequences of different lengths, padded to the longest.

    >>> import clipseq, torch
    >>> clipseq.pad([torch.randn(5, 8), torch.randn(3, 8)]).lengths
    tensor([5, 3])

    Args:
        items: tensors (T_i, D), floating point, with the same D, dtype and device. A sequence
            without steps, (0, D), is an empty one.

    Returns:
        (B, T, D) values and their mask, with T the largest T_i, and at least 1. Gradients flow
        back to the items.

    Raises:
        TypeError: `items` is not a list or tuple, an item is not a tensor or not floating point,
            or the dtypes differ.
        ValueError: `items` is empty, an item has another number of axes, or D or the devices
            differ.
    """
    if not isinstance(items, list | tuple):
        raise TypeError(
            f"items must be a list of tensors (T_i, D), got {type(items).__name__}; "
            "wrap a tensor that is a batch already with Sequences.from_tensor"
        )
    if not items:
        raise ValueError("items must have at least one sequence, got an empty list")
    for k, item in enumerate(items):
        if not isinstance(item, Tensor):
            raise TypeError(f"items[{k}] must be a tensor (T, D), got {type(item).__name__}")
        check_dense(f"items[{k}]", item, values=False)
        if item.ndim != 2:
            raise ValueError(f"items[{k}] must have the shape (T, D), got {tuple(item.shape)}")
        if not item.is_floating_point():
            raise TypeError(f"items[{k}] must be floating point, got {item.dtype}")
        first = items[0]
        if item.shape[1] != first.shape[1]:
            raise ValueError(
                f"items[{k}] must have D={first.shape[1]} features, as items[0] has, got "
                f"D={item.shape[1]}"
            )
        if item.dtype != first.dtype:
            raise TypeError(
                f"items[{k}] must be {first.dtype}, as items[0] is, got {item.dtype}; convert one "
                "of them"
            )
        if item.device != first.device:
            raise ValueError(
                f"items[{k}] must be on {first.device}, as items[0] is, got {item.device}"
            )
    values = nn.utils.rnn.pad_sequence(list(items), batch_first=True)
    if values.shape[1] == 0:
        values = F.pad(values, (0, 0, 0, 1))
    lengths = torch.tensor([len(item) for item in items], device=values.device)
    return Sequences(values, torch.arange(values.shape[1], device=values.device) < lengths[:, None])


def join(parts: Sequence[Sequences]) -> Sequences:
    """Concatenate the parts to one batch, each padded to the longest."""
    steps = max(part.mask.shape[1] for part in parts)
    values, masks = [], []
    for part in parts:
        missing = steps - part.mask.shape[1]
        # F.pad copies even where nothing is added.
        values.append(F.pad(part.values, (0, 0, 0, missing)) if missing else part.values)
        masks.append(F.pad(part.mask, (0, missing)))
    return Sequences(torch.cat(values), torch.cat(masks))


@attrs.frozen(eq=False)
class Alignment:
    """The alignment of n matched pairs, with steps at the positions that the caller passed.

    Attributes:
        score: (n,) similarity of each pair.
        weights: (n, T, L) strength of the match between step t of x and step l of y; never
            negative, and zero where either step is padding. Each similarity documents the meaning
            of its weights.
        mask: (n, T, L) True where both steps are real.
    """

    score: Float[Tensor, "n"]
    weights: Float[Tensor, "n T L"]
    mask: Bool[Tensor, "n T L"]


def pack(
    values: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]
) -> tuple[Sequences, Int[Tensor, "B T"], Bool[Tensor, "B"]]:
    """Zero the padding and move the real steps to the front, in their order.

    Returns the packed sequences, `order` (packed step k of item b was step ``order[b, k]``), and
    a mask of the items that have a real step. An empty item gets a single real step of zeros, so
    that later code never meets an empty sequence; the caller sets its scores.

    On a CPU the result is cut to the longest sequence. On other devices, reading that length would
    stall the device, and under `torch.compile` it would break the graph.
    """
    batch, steps, features = values.shape
    occupied, counts = mask.any(1), mask.sum(1)
    lengths = counts.clamp(min=1)
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        number = torch.arange(steps, device=mask.device)
        steps = int(lengths.max())
        if bool((mask == (number < counts[:, None])).all()):
            # Real steps are at the front already, as they nearly always are: no sort, no copy.
            if not bool(mask.all()):
                values = zeroed(values[:, :steps], mask[:, :steps])
            front = number[:steps] < lengths[:, None]
            return Sequences(values, front), number.expand(batch, -1), occupied
    order = torch.argsort(mask, dim=1, descending=True, stable=True)
    kept = order[:, :steps]
    rows = torch.arange(batch, device=values.device)[:, None] * values.shape[1] + kept
    # Zero before moving: NaN in a padded step must reach neither values nor gradients.
    clean = zeroed(values, mask)
    moved = clean.flatten(0, 1).index_select(0, rows.flatten()).view(batch, steps, features)
    front = torch.arange(steps, device=values.device) < lengths[:, None]
    return Sequences(moved, front), order, occupied


def unpack_pairs(
    weights: Float[Tensor, "n t l"], x_order: Int[Tensor, "n T"], y_order: Int[Tensor, "n L"]
) -> Float[Tensor, "n T L"]:
    """Move weights over packed steps back to the positions that the steps had before `pack`."""
    steps, others = x_order.shape[1], y_order.shape[1]
    full = weights.new_zeros(len(weights), steps, others)
    full[:, : weights.shape[1], : weights.shape[2]] = weights
    back_x = x_order.argsort(1)[:, :, None].expand(-1, -1, others)
    back_y = y_order.argsort(1)[:, None, :].expand(-1, steps, -1)
    return full.gather(1, back_x).gather(2, back_y)
