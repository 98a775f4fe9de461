"""What backward of an operator does with the gradient that arrives."""

import torch
from jaxtyping import Float
from torch import Tensor


def scaled(grad: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """``grad`` over the largest of its magnitudes, and that; 1 where it is zero or not finite.

    What follows is linear in it. Within ±1, it may be multiplied with numbers of any size, and
    cut into halves.
    """
    largest = grad.abs().amax()
    largest = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    return grad / largest, largest
