"""Arithmetic on the gradient that reaches the backward of an operator."""

import torch
from jaxtyping import Float
from torch import Tensor


def scaled(grad: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """Return `grad` divided by its largest magnitude, and that magnitude.

    The magnitude counts as 1 where it is zero or not finite. Backward is linear in `grad`, so a
    caller works with the quotient, which lies within ±1 and so may be multiplied by numbers of
    any size or cut into halves, and multiplies the result by the magnitude.
    """
    largest = grad.abs().amax()
    largest = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    return grad / largest, largest
