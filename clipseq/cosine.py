"""Unit vectors, safe where a plain quotient is not."""

import torch
from jaxtyping import Float
from torch import Tensor


def unit(values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """``v / ||v||`` along the last axis; a zero vector stays zero.

    Each vector is divided by its largest magnitude first, so that squares neither overflow nor
    vanish: any finite vector gets unit length. The result does not depend on that factor, hence
    it is a constant to autograd. A zero vector gets zero gradient, where
    `torch.nn.functional.normalize` gives one of size 1/eps.
    """
    largest = values.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = values / largest.masked_fill(zero, 1.0)
    # At least 1 where the vector is not zero, as one of its entries is ±1.
    norm = scaled.square().sum(-1, keepdim=True).masked_fill(zero, 1.0).sqrt()
    return (scaled / norm).masked_fill(zero, 0.0)
