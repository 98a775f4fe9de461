"""`smooth_maxsim` equals its formula in plain loops, and MaxSim in the limit."""

import itertools
import math

import pytest
import torch
from clipseq_smooth_maxsim import SmoothMaxSimSimilarity

import clipseq
from clipseq.testing import parametrize_with_checks


@parametrize_with_checks(SmoothMaxSimSimilarity)
def test_keeps_the_contract(check):
    check()


def real_steps(x, mask):
    """Yield the real steps of each sequence as unit vectors in float64."""
    for values, real in zip(x.double(), mask, strict=True):
        steps = values[real]
        yield steps / steps.norm(dim=1, keepdim=True)


def ragged(batch, steps, features=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, steps, features, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, steps, generator=generator) < 0.7
    mask[:, 0] = True
    return values, mask


def by_loops(x, y, gamma):
    def one_way(x, y):
        total = 0.0
        for a in x:
            total += gamma * math.log(sum(math.exp(float(a @ b) / gamma) for b in y) / len(y))
        return total / len(x)

    return (one_way(x, y) + one_way(y, x)) / 2


@pytest.mark.parametrize("gamma", [0.02, 0.5])
def test_is_the_formula(gamma):
    (x, x_mask), (y, y_mask) = ragged(3, 6), ragged(4, 5, seed=1)
    scores = SmoothMaxSimSimilarity(gamma=gamma)(x, y, x_mask, y_mask)
    pairs = itertools.product(real_steps(x, x_mask), real_steps(y, y_mask))
    expected = [by_loops(a, b, gamma) for a, b in pairs]
    torch.testing.assert_close(scores.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_a_small_gamma_is_maxsim_and_a_large_one_the_mean():
    (x, x_mask), (y, y_mask) = ragged(3, 6), ragged(4, 5, seed=1)
    scores = SmoothMaxSimSimilarity(gamma=1e-6)(x, y, x_mask, y_mask)
    maxsim = clipseq.get_similarity("local", window=1)(x, y, x_mask, y_mask)
    torch.testing.assert_close(scores, maxsim, atol=1e-5, rtol=0)
    scores = SmoothMaxSimSimilarity(gamma=1e6)(x, y, x_mask, y_mask)
    for i, a in enumerate(real_steps(x, x_mask)):
        for j, b in enumerate(real_steps(y, y_mask)):
            torch.testing.assert_close(scores[i, j], (a @ b.T).mean(), atol=1e-6, rtol=0)


def test_a_sequence_twice_over_scores_the_same():
    x, y = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 6, 3, dtype=torch.float64)
    similarity = SmoothMaxSimSimilarity()
    torch.testing.assert_close(similarity(x, torch.cat((y, y), 1)), similarity(x, y))


def test_weights_are_the_gradient():
    axes = torch.eye(4, dtype=torch.float64)[None]
    steps = clipseq.unit(torch.randn(1, 5, 4, dtype=torch.float64))
    tangent = torch.randn_like(steps)
    tangent = tangent - (tangent * steps).sum(2, keepdim=True) * steps
    moved = steps.clone().requires_grad_()
    SmoothMaxSimSimilarity()(axes, moved).sum().backward()
    weights = SmoothMaxSimSimilarity().explain(axes, steps).weights[0]
    torch.testing.assert_close((moved.grad * tangent).sum(), (weights.T * tangent[0]).sum())
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_says_what_is_wrong_with_gamma(gamma):
    with pytest.raises(ValueError, match=f"gamma must be positive, got {gamma}"):
        SmoothMaxSimSimilarity(gamma=gamma)


def test_a_constant_cosine_scores_itself_at_any_lengths():
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 7, 2)
    for cosine in (-1.0, -0.3, 0.0, 0.8, 1.0):
        step = torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
        for length in (1, 3, 12):
            scores = SmoothMaxSimSimilarity()(x, step.expand(2, length, 2))
            torch.testing.assert_close(scores, torch.full_like(scores, cosine))


def test_explains_in_inference_mode():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    with torch.inference_mode():
        weights = SmoothMaxSimSimilarity().explain(x, y).weights
    torch.testing.assert_close(weights, SmoothMaxSimSimilarity().explain(x, y).weights)


def test_is_registered_and_joins_combined():
    info = clipseq.available_similarities()["smooth_maxsim"]
    assert (info.cls, info.distribution) == (SmoothMaxSimSimilarity, "clipseq-smooth-maxsim")
    assert clipseq.get_similarity("combined").weights["smooth_maxsim"] == pytest.approx(
        info.default_weight
    )
