import pytest
import torch

import clipseq
from clipseq.cosine import to_unit, unit_gradient

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
    # A batch, which is done in place of numbers as they are, and each vector alone.
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
    assert unit_gradient(torch.ones_like(values), values, inverse, out) is out
