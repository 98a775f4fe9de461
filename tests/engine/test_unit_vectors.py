import pytest
import torch
import torch.fx.experimental.proxy_tensor

import clipseq
from clipseq.engine import to_unit, unit_gradient

SIZES = [1.0, 1e-30, 1e30, 0.0, 1e-20, 1e20, 1e-3]


def of_all_sizes(dtype):
    torch.manual_seed(0)
    directions = torch.randn(len(SIZES), 5, dtype=dtype)
    return directions * torch.tensor(SIZES, dtype=dtype)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_whose_squares_leave_the_range_have_unit_length_among_others_that_do_not(dtype):
    values = of_all_sizes(dtype)
    expected = torch.nn.functional.normalize(values.double(), dim=1, eps=1e-300).to(dtype)
    torch.testing.assert_close(clipseq.unit(values), expected)
    # Tensors with one axis take another path.
    for vector, one in zip(values, expected, strict=True):
        torch.testing.assert_close(clipseq.unit(vector), one)


def test_a_vector_is_what_it_is_alone():
    values = of_all_sizes(torch.float32)
    alone = torch.cat([clipseq.unit(vector[None]) for vector in values])
    assert clipseq.unit(values).equal(alone)


def test_gradient_is_that_of_the_quotient_and_nothing_for_zero():
    values = of_all_sizes(torch.float64)[[0, 2, 3, 4, 6]].requires_grad_()
    weights = torch.randn_like(values)
    found = torch.autograd.grad((clipseq.unit(values) * weights).sum(), values)[0]
    norm = values.norm(dim=1, keepdim=True)
    expected = torch.autograd.grad((values / norm * weights).sum(), values)[0].nan_to_num(0.0)
    torch.testing.assert_close(found * norm, expected * norm)
    assert not found[2].any()


def test_a_vector_whose_inverse_length_is_out_of_range_has_a_finite_gradient_for_others():
    values = torch.tensor([[1.0, 2.0], [1e-42, 0.0]], requires_grad=True)
    clipseq.unit(values).sum().backward()
    expected = torch.autograd.grad(torch.nn.functional.normalize(values[:1], dim=1).sum(), values)
    torch.testing.assert_close(values.grad[0], expected[0][0])
    assert not values.grad.isnan().any()


def test_gradients_of_many_at_once_are_those_of_each():
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loop = torch.autograd.functional.jacobian(clipseq.unit, values)
    at_once = torch.autograd.functional.jacobian(clipseq.unit, values, vectorize=True)
    torch.testing.assert_close(at_once, loop)


def test_is_traced():
    values = torch.randn(3, 4)
    traced = torch.fx.experimental.proxy_tensor.make_fx(clipseq.unit)(values)
    torch.testing.assert_close(traced(2 * values), clipseq.unit(values))


def test_second_derivative():
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(clipseq.unit, values)


def test_to_unit_writes_in_place():
    values = of_all_sizes(torch.float32)
    expected = clipseq.unit(values)
    inverse = to_unit(values, out=values)
    assert values.equal(expected)
    assert inverse[3] == 0.0
    out = torch.empty_like(values)
    assert unit_gradient(torch.ones_like(values), values, inverse, out=out) is out
