"""Arithmetic on the gradient that reaches the backward of an operator."""

import torch
from jaxtyping import Float
from torch import Tensor


def scaled(grad: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """Return `grad` divided by its largest magnitude, and that magnitude.

    A magnitude that is zero or not finite is replaced by 1. Backward is linear in `grad`, so a
    caller computes with the quotient and multiplies the result by the magnitude. The quotient lies
    within ±1, so it may be multiplied by numbers of any size or split into `halves`.

    Quotients below the cube root of the smallest normal number (2⁻⁴² in float32) are zero: next to
    the largest, their gradients would vanish, and their products with small weights would be
    subnormal numbers, with which many processors compute a hundred times as slowly.
    """
    largest = grad.abs().amax()
    largest = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    quotient = grad / largest
    least = torch.finfo(grad.dtype).tiny ** (1 / 3)
    return torch.where(quotient.abs() < least, 0.0, quotient), largest
