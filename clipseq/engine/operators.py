"""Scores and their gradient as one operator, opaque to torch.compile and torch.export."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clipseq.engine.gradients import without_second_derivative
from clipseq.engine.kernels import use_kernels
from clipseq.engine.process_state import restored


class Operator:
    """A differentiable torch operator that Triton kernels compute where they can.

    .. code-block:: python

        def forward(x: Tensor, y: Tensor) -> Tensor: ...
        def backward(grad: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...

        scores = Operator("mine::scores", forward, backward, kernels="clipseq_mine.triton_kernels")
        scores(x, y)

    It registers the custom operators `name` and ``<name>_backward`` with torch, together with their
    results for fake tensors, and makes the second the derivative of the first. Backward always
    runs without autocast. There is no second derivative.

    Arguments are matched by name: `backward` gets the gradient to the first output, and then the
    inputs and outputs of `forward` that its signature names. Other inputs and outputs are not kept
    between forward and backward.

    Args:
        name: ``"<namespace>::<operator>"``.
        forward: computes the outputs. Its annotations become the operator's schema, so they must be
            `Tensor`, int, float, bool or another type that `torch.library.infer_schema` knows.
        backward: computes a gradient for each name in `gradients`, in their order.
        gradients: inputs of `forward` that have a gradient.
        outputs: names of what `forward` returns. The first one is differentiable.
        fake: returns empty tensors for the outputs, from the inputs of `forward`. None: there is
            one output, (B, C) for inputs that begin with x (B, ...) and y (C, ...).
        kernels: the module of the Triton kernels, imported when they are first used. Its functions
            ``forward`` and ``backward`` have the arguments and results of `forward` and
            `backward`. If it has a function ``supported``, whose arguments have the names that
            `forward` gives them, kernels are used only where it returns True. See `use_kernels`
            for the other conditions.

    Attributes:
        name: the argument `name`.
        kernels: the argument `kernels`.
        module: the module in which `forward` is defined.

    Raises:
        ValueError: the arguments of `backward`, or the names in `gradients`, do not fit `forward`.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        *,
        gradients: Sequence[str] = ("x", "y"),
        outputs: Sequence[str] = ("scores",),
        fake: Callable[..., Any] | None = None,
        kernels: str | None = None,
    ) -> None:
        self.name, self.kernels, self.module = name, kernels, forward.__module__
        self.forward, self.backward = forward, backward
        self._inputs = list(signature(forward).parameters)
        _, *self._kept = signature(backward).parameters
        self._gradients, self._outputs = list(gradients), list(outputs)
        _check_names("backward's arguments", self._kept, [*self._inputs, *self._outputs])
        _check_names("gradients", self._gradients, self._inputs)
        _check_names("gradients", self._gradients, self._kept)
        self._custom_op = _custom_op(name, forward, self._compute_forward)
        self._custom_op.register_fake(fake or _fake_scores)
        self._custom_op_backward = _custom_op(f"{name}_backward", backward, self._compute_backward)
        self._custom_op_backward.register_fake(self._fake_gradients)
        self._custom_op.register_autograd(self._differentiate, setup_context=self._keep)

    def __call__(self, *inputs: Any) -> Any:
        """Return what `forward` returns for these inputs."""
        if not torch.compiler.is_compiling() and "torch._dynamo" not in sys.modules:
            _load_compiler()
        return self._custom_op(*inputs)

    def __repr__(self) -> str:
        return f"<Operator {self.name}>"

    def _compute_forward(self, *inputs: Any) -> Any:
        kernels = self._kernels_for(dict(zip(self._inputs, inputs, strict=True)))
        return self.forward(*inputs) if kernels is None else kernels.forward(*inputs)

    def _compute_backward(self, grad: Tensor, *kept: Any) -> Any:
        kernels = self._kernels_for(dict(zip(self._kept, kept, strict=True)))
        backward = self.backward if kernels is None else kernels.backward
        return backward(grad, *kept)

    def _kernels_for(self, arguments: dict[str, Any]) -> ModuleType | None:
        if self.kernels is None or not use_kernels(arguments[self._gradients[0]]):
            return None
        kernels = import_module(self.kernels)
        supported = getattr(kernels, "supported", None)
        if supported and not supported(
            *(arguments[name] for name in signature(supported).parameters)
        ):
            return None
        return kernels

    def _fake_gradients(self, grad: Tensor, *kept: Any) -> Tensor | tuple[Tensor, ...]:
        arguments = dict(zip(self._kept, kept, strict=True))
        found = tuple(torch.empty_like(arguments[name]) for name in self._gradients)
        return found if len(found) > 1 else found[0]

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        values = dict(zip([*self._inputs, *self._outputs], [*inputs, *outputs], strict=True))
        kept = [values[name] for name in self._kept]
        ctx.save_for_backward(*(value for value in kept if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in kept]

    def _differentiate(self, ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        kept = [next(tensors) if other is None else other[0] for other in ctx.others]
        with torch.autocast(grad.device.type, enabled=False):  # backward may run under autocast
            found = self._custom_op_backward(grad, *kept)
        found = (found,) if isinstance(found, Tensor) else found
        found = without_second_derivative(found, (grad, *kept))
        by_name = dict(zip(self._gradients, found, strict=True))
        return tuple(by_name.get(name) for name in self._inputs)


def _load_compiler() -> None:
    """Import torch's compiler, which every custom operator needs, and leave the process unchanged.

    The import sets an environment variable and a warning filter.
    """
    with restored():
        import_module("torch._dynamo")


def _custom_op(
    name: str, function: Callable[..., Any], compute: Callable[..., Any]
) -> torch.library.CustomOpDef:
    schema = torch.library.infer_schema(function, mutates_args=())
    return torch.library.custom_op(name, compute, mutates_args=(), schema=schema)


def _fake_scores(x: Tensor, y: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{what} must be among {', '.join(known)}, got {', '.join(unknown)}")
