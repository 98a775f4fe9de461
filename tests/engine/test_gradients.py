import pytest
import torch
import torch.utils.checkpoint

from clipseq.engine import first_derivative_only, scaled


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


class Halved(torch.autograd.Function):
    """Half of the squares, with a derivative that must not be differentiated."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.square() / 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x


@pytest.mark.parametrize("again", [False, True])
def test_a_checkpoint_gives_saved_tensors_once(again):
    x = torch.tensor([3.0, -2.0], requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(Halved.apply, x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=again)
    torch.testing.assert_close(gradient.detach(), x.detach())
    if again:
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()
