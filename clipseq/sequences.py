"""Batches of sequences of different lengths, and the alignment of two of them."""

from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from clipseq.engine import zeroed


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
        """Wrap `values` and set padded steps to zero; without a mask, every step is real."""
        if mask is None:
            return cls(values, values.new_ones(values.shape[:2], dtype=torch.bool))
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True at a real step, got {mask.dtype}")
        return cls(zeroed(values, mask), mask)

    @property
    def lengths(self) -> Int[Tensor, "B"]:
        """Number of real steps of each sequence."""
        return self.mask.sum(1)


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
