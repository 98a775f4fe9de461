import pytest
import torch

from clipseq.engine import scaled


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e38])
def test_is_within_one_and_comes_back(size):
    grad = size * torch.tensor([[0.5, -2.0], [0.0, 1.0]])
    shares, largest = scaled(grad)
    assert shares.abs().max() == 1
    torch.testing.assert_close(shares * largest, grad, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("odd", [0.0, torch.inf, torch.nan])
def test_a_gradient_without_a_finite_size_is_unchanged(odd):
    grad = torch.tensor([odd, 0.0])
    shares, largest = scaled(grad)
    assert largest == 1
    torch.testing.assert_close(shares, grad, rtol=0.0, atol=0.0, equal_nan=True)
