"""A stand-in for a device that lacks float64, such as an Apple GPU.

Inside `other_device()`, a tensor that is created on `DEVICE` or moved there has its numbers on the
CPU, but an operation raises `Refused` if it makes a float64 tensor there, or takes a CPU tensor
along with one of the device. (Numbers without dimensions may come from the CPU, as in torch; an
index may not, although torch takes one, since it is a silent copy.) Custom operators run the code
that they run on any device without kernels.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import clipseq
from clipseq.engine import Operator, devices

DEVICE = torch.device("meta")
"""Any other type of device would have to be compiled into torch."""

_COPIES = ("aten._to_copy.", "aten.copy_.", "aten.to.")
_CPU = torch.device("cpu")
_READS = (
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten._unique2.default",
    "aten.equal.default",
    "aten.masked_select.default",
)


class Refused(Exception):
    """An operation that the device does not have."""


class There(Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        there = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        there.held = held
        return there

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch refuses a subclass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise Refused(f"{func} outside OtherDevice()")


class _Device(TorchDispatchMode):
    def __init__(self, operators: dict[str, Any]) -> None:
        super().__init__()
        self.operators = operators
        self.reads: list[str] = []
        self._inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = str(func)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        there = any(isinstance(value, There) for value in tensors)
        if there and name in self.operators:
            with self:
                return self._operator(self.operators[name], args)
        if there and not name.startswith(_COPIES):
            strangers = [v for v in tensors if not isinstance(v, There) and v.ndim > 0]
            if strangers:
                shapes = [tuple(v.shape) for v in strangers]
                raise Refused(f"{name} takes CPU tensors {shapes} with tensors of {DEVICE}")
        if there and (name in _READS or kwargs.get("device") == _CPU) and not self._inside:
            self.reads.append(name)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs["device"] = torch.device("cpu")
        elif name == "aten.copy_.default":  # copies from and to the CPU
            there = isinstance(args[0], There)
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not there:
            return out
        return self._returned(name, func, args, out)

    def _operator(self, function: Any, args: tuple[Any, ...]) -> Any:
        self._inside = True
        try:
            return function(*args)
        finally:
            self._inside = False

    def _returned(self, name: str, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                raise Refused(f"{name} makes a float64 tensor on {DEVICE}")
        if isinstance(out, Tensor):  # in place, or with out=: the same tensor
            for value in tree_leaves(args):
                if isinstance(value, There) and value.held is out:
                    return value
        return tree_map(lambda value: There(value) if isinstance(value, Tensor) else value, out)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


@contextlib.contextmanager
def other_device() -> Iterator[_Device]:
    """Make the device available.

    The result's `reads` lists the operations that make the host wait for a device, outside of
    operators, whose kernels make it wait for nothing.
    """
    operators: dict[str, Any] = {}
    for name in clipseq.available_similarities():
        for operator in getattr(type(clipseq.get_similarity(name)), "operators", ()):
            assert isinstance(operator, Operator)
            schema = operator.name.replace("::", ".")
            operators[f"{schema}.default"] = operator.forward
            operators[f"{schema}_backward.default"] = operator.backward
    device = _Device(operators)
    with (
        mock.patch.object(devices, "_WITHOUT_FLOAT64", (DEVICE.type,)),
        mock.patch.object(torch, "autocast", _autocast),
        mock.patch.object(torch, "is_autocast_enabled", return_value=False),
        device,
    ):
        yield device


def _autocast(kind: str, **options: Any) -> Any:
    return _AUTOCAST("cpu" if kind == DEVICE.type else kind, **options)


_AUTOCAST = torch.autocast
