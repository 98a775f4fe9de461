"""Zeroing of padded steps, whatever they contain."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipseq.engine.workspace import loops_pay


def zeroed(values: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Return `values` with zeros where the mask is False, even where they are NaN or infinite."""
    if not loops_pay(values):
        return values.masked_fill(~mask[..., None], 0)
    return _Zeroed.apply(values, mask)


class _Zeroed(torch.autograd.Function):
    """Zeroing by an integer product of bit patterns with 0 or 1, faster than torch's masked fill.

    torch fills one element at a time.
    """

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
"""The integer type of each element size in bytes."""
