"""float32 against float64, and what half precision may and may not touch."""

import pytest
import torch

import clipseq

CASES = [
    ("global", {}),
    ("local", {"window": 1}),
    ("local", {}),
    ("attention", {}),
    ("temporal", {}),
    ("temporal", {"gamma": 0.01, "band": 0.2}),
    ("combined", {}),
]


def batch(dtype: torch.dtype) -> list[torch.Tensor]:
    # As long as a minute of radar and a long sentence; few pairs, as pairs do not meet.
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 1, 256, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 128, 256, generator=generator, dtype=torch.float64) + common
    y = torch.randn(6, 32, 256, generator=generator, dtype=torch.float64) + common
    # What training makes of matched pairs: each step of y is near some of x.
    y[:3] = x[:3, ::4] + 0.1 * y[:3]
    x_lengths = torch.tensor([128, 128, 100, 77, 128, 1])
    y_lengths = torch.tensor([32, 20, 32, 1, 7, 32])
    x_mask = torch.arange(128) < x_lengths[:, None]
    y_mask = torch.arange(32) < y_lengths[:, None]
    return [x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_(), x_mask, y_mask]


def scores_and_gradients(similarity, inputs):
    scores = similarity(*inputs)
    weights = torch.linspace(-1, 1, 36).view(6, 6).to(scores.dtype)
    wanted = [*inputs[:2], *similarity.parameters()]
    return scores, torch.autograd.grad((scores * weights).sum(), wanted)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_float32_is_near_float64(name, options):
    similarity = clipseq.get_similarity(name, **options)
    scores, gradients = scores_and_gradients(similarity, batch(torch.float32))
    exact, exact_gradients = scores_and_gradients(similarity.double(), batch(torch.float64))
    assert scores.dtype == torch.float32
    assert (scores - exact).abs().max() <= 1e-5
    for gradient, other in zip(gradients, exact_gradients, strict=True):
        assert (gradient - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_autocast_changes_nothing_but_the_inputs(name, options):
    x, y, x_mask, y_mask = batch(torch.float32)
    x, y = x.detach().bfloat16(), y.detach().bfloat16()
    similarity = clipseq.get_similarity(name, **options)
    with torch.autocast("cpu", torch.bfloat16):
        scores = similarity(x, y, x_mask, y_mask)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, similarity(x.float(), y.float(), x_mask, y_mask))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_half_precision_model_computes_in_float32(name, options):
    x, y, x_mask, y_mask = batch(torch.float32)
    x, y = (value.detach().bfloat16().requires_grad_() for value in (x, y))
    similarity = clipseq.get_similarity(name, **options).bfloat16()
    scores = similarity(x, y, x_mask, y_mask)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.isfinite().all()
