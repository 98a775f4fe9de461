"""An operator has the schema, fakes and derivative that its two functions declare."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from clipseq.engine import Operator


def scale_forward(x: Tensor, y: Tensor, factor: float, shift: Tensor) -> tuple[Tensor, Tensor]:
    sums = x.sum(1)
    return factor * x @ y.T + shift, sums


def scale_backward(
    grad: Tensor, sums: Tensor, shift: Tensor, y: Tensor, factor: float, x: Tensor
) -> tuple[Tensor, Tensor]:
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(sums, x.sum(1))
    return grad.sum().reshape(shift.shape), factor * grad @ y


def fake(x: Tensor, y: Tensor, factor: float, shift: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], y.shape[0]), x.new_empty(x.shape[0])


operator = Operator(
    "engine_test::scale",
    scale_forward,
    scale_backward,
    gradients=("shift", "x"),
    outputs=("scores", "sums"),
    fake=fake,
    kernels="engine_test_kernels",
)


def inputs(dtype=torch.float64):
    x, y = torch.randn(3, 4, dtype=dtype), torch.randn(2, 4, dtype=dtype)
    return x.requires_grad_(), y, 1.5, torch.randn((), dtype=dtype, requires_grad=True)


def test_backward_gets_what_it_names_and_gives_the_gradients_it_declares():
    x, y, factor, shift = inputs()
    expected = torch.autograd.grad((factor * x @ y.T + shift).square().sum(), (x, shift))
    scores, _ = operator(x, y, factor, shift)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(scores.square().sum(), (x, shift))
    torch.testing.assert_close(found, expected)


def test_torchs_own_checks_of_operators_pass(unchecked_signatures):
    torch.library.opcheck(torch.ops.engine_test.scale.default, inputs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradients": ("z",), "outputs": ("scores", "sums")},
            "gradients must be among x, y, factor, shift, got z",
        ),
        ({"gradients": ("x",)}, "backward's arguments must be among .*, got sums"),
    ],
)
def test_names_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Operator("engine_test::wrong", scale_forward, scale_backward, **options)


@pytest.fixture
def kernels(monkeypatch):
    """A module of kernels that counts its calls, on a machine where kernels compute."""
    module = ModuleType("engine_test_kernels")
    module.calls = []
    for name, function in (("forward", scale_forward), ("backward", scale_backward)):
        setattr(
            module,
            name,
            lambda *a, name=name, function=function: module.calls.append(name) or function(*a),
        )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("clipseq.engine.operators.use_kernels", lambda values: True)
    return module


def test_kernels_compute_where_they_can(kernels):
    x, y, factor, shift = inputs()
    operator(x, y, factor, shift)[0].sum().backward()
    assert kernels.calls == ["forward", "backward"]


def test_torch_computes_what_the_kernels_do_not_support(kernels):
    kernels.supported = lambda x, factor: factor < 1
    x, y, factor, shift = inputs()
    operator(x, y, factor, shift)[0].sum().backward()
    assert kernels.calls == []
    operator(x, y, 0.5, shift)
    assert kernels.calls == ["forward"]
