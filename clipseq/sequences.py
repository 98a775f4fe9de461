"""Batches of sequences of different lengths, and how two of them line up."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from clipseq.engine.workspace import loops_pay


class Sequences(NamedTuple):
    """A batch of sequences: `values` (B, T, D) and `mask` (B, T), True at a real step.

    Whoever builds one leaves zeros in the padded steps of `values`. A named tuple, so that it is
    a tree of tensors to torch (autograd, compile, export, DDP and FSDP hooks look into it).
    """

    values: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]

    @classmethod
    def from_tensor(cls, values: Tensor, mask: Tensor | None = None) -> "Sequences":
        """Wrap `values`; without a mask every step is real. Padded steps are set to zero."""
        if mask is None:
            return cls(values, values.new_ones(values.shape[:2], dtype=torch.bool))
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True at a real step, got {mask.dtype}")
        return cls(zeroed(values, mask), mask)

    @property
    def lengths(self) -> Int[Tensor, "B"]:
        """Number of real steps of each sequence."""
        return self.mask.sum(1)


def zeroed(values: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """`values`, with zeros where the mask is False, whatever is there: NaN and infinity too."""
    if not loops_pay(values):
        return values.masked_fill(~mask[..., None], 0)
    return _Zeroed.apply(values, mask)


class _Zeroed(torch.autograd.Function):
    """Numbers as integers times 0 or 1: torch fills one element at a time, which takes longer."""

    @staticmethod
    def forward(values: Tensor, mask: Tensor) -> Tensor:
        bits = _INTEGERS[values.element_size()]
        return torch.mul(values.view(bits), mask[..., None].to(bits)).view(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return zeroed(grad, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return zeroed(tangent, *ctx.saved_tensors)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of a number in bytes."""


def join(parts: Sequence[Sequences]) -> Sequences:
    """The parts as one batch, in their order, each padded to the longest of all."""
    steps = max(part.mask.shape[1] for part in parts)
    values, masks = [], []
    for part in parts:
        missing = steps - part.mask.shape[1]
        # Padding by nothing would be a copy.
        values.append(F.pad(part.values, (0, 0, 0, missing)) if missing else part.values)
        masks.append(F.pad(part.mask, (0, missing)))
    return Sequences(torch.cat(values), torch.cat(masks))


@attrs.frozen(eq=False)
class Alignment:
    """How n matched pairs line up, at the caller's own positions.

    Attributes:
        score: (n,) the similarity of each pair.
        weights: (n, T, L) how much step t of x answered to step l of y; never negative, zero
            wherever either step is padding. What the weights mean is the similarity's to say.
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
    which items have a real step at all. One that has none gets a single real step of zeros, so
    that whatever comes later never meets an empty sequence; its scores are the caller's to set.

    On a CPU the result is cut to the longest sequence; elsewhere reading that length would stop
    the device, and under `torch.compile` it would break the graph.
    """
    batch, steps, features = values.shape
    occupied, counts = mask.any(1), mask.sum(1)
    lengths = counts.clamp(min=1)
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        number = torch.arange(steps, device=mask.device)
        steps = int(lengths.max())
        if bool((mask == (number < counts[:, None])).all()):
            # At the front already, as nearly always: a sort and a copy less.
            if not bool(mask.all()):
                values = zeroed(values[:, :steps], mask[:, :steps])
            front = number[:steps] < lengths[:, None]
            return Sequences(values, front), number.expand(batch, -1), occupied
    order = torch.argsort(mask, dim=1, descending=True, stable=True)
    kept = order[:, :steps]
    rows = torch.arange(batch, device=values.device)[:, None] * values.shape[1] + kept
    # Zeroing comes before the move: NaN in a padded step must reach neither value nor gradient.
    clean = zeroed(values, mask)
    moved = clean.flatten(0, 1).index_select(0, rows.flatten()).view(batch, steps, features)
    front = torch.arange(steps, device=values.device) < lengths[:, None]
    return Sequences(moved, front), order, occupied


def unpack_pairs(
    weights: Float[Tensor, "n t l"], x_order: Int[Tensor, "n T"], y_order: Int[Tensor, "n L"]
) -> Float[Tensor, "n T L"]:
    """Put weights over packed steps back at the positions that `pack` took the steps from."""
    steps, others = x_order.shape[1], y_order.shape[1]
    full = weights.new_zeros(len(weights), steps, others)
    full[:, : weights.shape[1], : weights.shape[2]] = weights
    back_x = x_order.argsort(1)[:, :, None].expand(-1, -1, others)
    back_y = y_order.argsort(1)[:, None, :].expand(-1, steps, -1)
    return full.gather(1, back_x).gather(2, back_y)
