"""Arithmetic on the gradient that reaches the backward of an operator."""

import torch
from jaxtyping import Float
from torch import Tensor


def scaled(grad: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """Return `grad` divided by its largest magnitude, and that magnitude.

    A magnitude that is zero or not finite is replaced by 1. Backward is linear in `grad`, so a
    caller computes with the quotient and multiplies the result by the magnitude. The quotient lies
    within ±1, so it may be multiplied by numbers of any size or split into `halves`.
    """
    largest = grad.abs().amax()
    largest = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    return grad / largest, largest
