"""Unit vectors of any finite vectors, even where ``v / ||v||`` would overflow or underflow."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq.engine.options import check_dense
from clipseq.engine.workspace import NUMBERS, few_items, loops_pay


def unit(values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Return ``v / ||v||`` along the last axis; a zero vector stays zero.

    Any finite vector gets unit length: where a square would overflow or underflow, the whole vector
    is first divided by its largest magnitude. A zero vector gets zero gradient, whereas
    `torch.nn.functional.normalize` gives it one of size 1/eps.

    Raises:
        TypeError: `values` is not a dense floating point tensor.
        ValueError: `values` has no axis, or no feature.
    """
    check_dense("values", values, values=False)
    if not values.is_floating_point():
        raise TypeError(f"values must be floating point, got {values.dtype}")
    if not values.ndim or not values.shape[-1]:
        raise ValueError(
            f"values must have a last axis of at least one feature, got {tuple(values.shape)}"
        )
    result, _ = _Unit.apply(values)
    return result


def cosines(x: Float[Tensor, "B D"], y: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
    """Return the cosine of every x with every y, in float32 or better.

    In half precision, different cosines would tie.
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        return unit(x.to(dtype)) @ unit(y.to(dtype)).T


def to_unit(
    values: Float[Tensor, "*batch D"], out: Float[Tensor, "*batch D"]
) -> Float[Tensor, "*batch 1"]:
    """Write `unit` of `values` to `out` and return 1/||v||, which is 0 for a zero vector.

    Both arguments may be the same tensor. There is no gradient. The function reads values to find
    the vectors that need special treatment, so use it only where reading is cheap (`loops_pay`).
    """
    limits = torch.finfo(values.dtype)
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    least, most = limits.tiny**0.4, limits.max**0.4
    smallest, largest = norm.aminmax() if norm.numel() else (norm.new_ones(()),) * 2
    if float(smallest) > least and float(largest) < most:  # False for NaN
        torch.div(values, norm, out=out)
        return norm.reciprocal_()
    squares_fit = (norm > least) & (norm < most)
    # Most of the other vectors are zero, as padding is. From here on, `values` may be overwritten.
    others = (~squares_fit & (values.abs().amax(-1, keepdim=True) != 0)).squeeze(-1)
    torch.div(values, norm.masked_fill(~squares_fit, 1.0), out=out)
    inverse = norm.reciprocal_().masked_fill_(~squares_fit, 0.0)
    if bool(others.any()):
        # These vectors were divided by 1 above.
        out[others], inverse[others] = _scaled_first(out[others])
    return inverse


def unit_gradient(
    grad: Float[Tensor, "*batch D"],
    units: Float[Tensor, "*batch D"],
    inverse: Float[Tensor, "*batch 1"],
    grad_inverse: Tensor | float = 0.0,
    out: Float[Tensor, "*batch D"] | None = None,
) -> Float[Tensor, "*batch D"]:
    """Return the gradient to the vectors that `to_unit` turned into `units` and `inverse`.

    Args:
        grad: gradient to the unit vectors.
        units: the unit vectors.
        inverse: 1/||v||, as `to_unit` returns it.
        grad_inverse: gradient to `inverse`, for second derivatives.
        out: memory for the result.
    """
    along = torch.mul(grad, units, out=out).sum(-1, keepdim=True) + grad_inverse * inverse
    apart = torch.addcmul(grad, units, along, value=-1, out=out)
    return torch.mul(apart, inverse, out=out)


class _Unit(torch.autograd.Function):
    """`unit` with a hand-written backward: autograd would read all steps four times as often."""

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(values: Tensor) -> tuple[Tensor, Tensor]:
        if values.ndim == 1 or not values.is_floating_point() or not loops_pay(values):
            return _scaled_first(values)
        if values.numel() <= NUMBERS:
            result = torch.empty_like(values)
            return result, to_unit(values, result)
        result, inverse = torch.empty_like(values), values.new_empty(*values.shape[:-1], 1)
        for some, out, norms in few_items(values, result, inverse):
            norms.copy_(to_unit(some, out))
        return result, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_inverse: Tensor) -> Tensor:
        # The second output, 1/||v||, exists for backward; second derivatives need its gradient.
        result, inverse = ctx.saved_tensors
        few = grad.numel() <= NUMBERS
        if few or torch.is_grad_enabled() or grad.ndim == 1 or not loops_pay(grad):
            return unit_gradient(grad, result, inverse, grad_inverse)
        found = torch.empty_like(grad)
        sides = grad, result, inverse, grad_inverse
        for part, to_units, units, norms, to_norms in few_items(found, *sides):
            unit_gradient(to_units, units, norms, to_norms, out=part)
        return found


def _scaled_first(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `unit` of any vectors and 1/||v||, which is 0 for a zero vector."""
    # torch's infinity norm gives the same number, but is slower: one element at a time.
    largest = values.abs().amax(-1, keepdim=True)
    zero = largest == 0
    scaled = values / largest.masked_fill(zero, 1.0)
    # At least 1 where the vector is not zero, since one of its entries is ±1.
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    scaled = scaled.div_(norm.masked_fill(zero, 1.0))
    # The inverse of a denormal number is out of range.
    inverse = (1 / (norm * largest)).clamp(max=torch.finfo(scaled.dtype).max)
    return scaled, inverse.masked_fill_(zero, 0.0)
