"""Unit vectors, safe where a plain quotient is not."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq.workspace import few_items, loops_pay


def unit(values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """``v / ||v||`` along the last axis; a zero vector stays zero.

    Each vector is divided by its largest magnitude first, so that squares neither overflow nor
    vanish: any finite vector gets unit length. A zero vector gets zero gradient, where
    `torch.nn.functional.normalize` gives one of size 1/eps.
    """
    result, _ = _Unit.apply(values)
    return result


class _Unit(torch.autograd.Function):
    """By hand, as autograd would pass over all steps four times as often."""

    @staticmethod
    def forward(values: Tensor) -> tuple[Tensor, Tensor]:
        largest = _largest_magnitude(values)
        zero = largest == 0
        scaled = values / largest.masked_fill(zero, 1.0)
        # At least 1 where the vector is not zero, as one of its entries is ±1.
        norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
        scaled = scaled.div_(norm.masked_fill(zero, 1.0))
        return scaled, (1 / (norm * largest)).masked_fill_(zero, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_inverse: Tensor) -> Tensor:
        # The second output, 1/||v||, is there for this and has a gradient for the second order.
        result, inverse = ctx.saved_tensors
        if torch.is_grad_enabled() or grad.ndim == 1 or not loops_pay(grad):
            return _gradient(grad, grad_inverse, result, inverse)
        found = torch.empty_like(grad)
        for part, *sides in few_items(found, grad, grad_inverse, result, inverse):
            part.copy_(_gradient(*sides))
        return found


def _gradient(grad: Tensor, grad_inverse: Tensor, result: Tensor, inverse: Tensor) -> Tensor:
    along = (grad * result).sum(-1, keepdim=True) + grad_inverse * inverse
    return torch.addcmul(grad, result, along, value=-1) * inverse


def _largest_magnitude(values: Tensor) -> Tensor:
    # torch's infinity norm is the same, one element at a time.
    parts = few_items(values) if values.ndim > 1 and loops_pay(values) else [(values,)]
    return torch.cat([part.abs().amax(-1, keepdim=True) for (part,) in parts])
