"""Gradients in the backward of an operator: their scale, and the second derivative they lack."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

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


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make the ``backward`` of an autograd Function raise if it is differentiated.

    `torch.autograd.function.once_differentiable` raises only if the gradient that arrives depends
    on the inputs; where a similarity is linear in its scores, the second derivative would silently
    be zero.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> Any:
        if not torch.is_grad_enabled():  # nobody can differentiate the result
            return backward(ctx, *grads)
        read = _ReadOnce(ctx)
        with torch.no_grad():
            found = backward(read, *grads)
        return without_second_derivative(found, (*grads, *read.saved_tensors))

    return once


class _ReadOnce:
    """A context whose saved tensors are read once: a checkpoint gives them no second time."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def without_second_derivative(found: Any, sources: Iterable[Any]) -> Any:
    """Return gradients that raise RuntimeError if they are differentiated.

    Args:
        found: one gradient, or a tuple of gradients and None.
        sources: all that they were computed from.
    """
    if not torch.is_grad_enabled():  # nobody can differentiate them
        return found
    inputs = [s for s in sources if isinstance(s, Tensor) and s.requires_grad]
    if not inputs:
        return found
    if isinstance(found, Tensor):
        return _Once.apply(found, *inputs)
    return tuple(_Once.apply(one, *inputs) if isinstance(one, Tensor) else one for one in found)


class _Once(torch.autograd.Function):
    """The identity, whose backward raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            "the scores of this similarity have no second derivative; compute the penalty with "
            "respect to something else, or with finite differences"
        )
