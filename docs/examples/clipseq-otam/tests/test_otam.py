"""`otam` equals its definition, a mean over all walks."""

import itertools
import math

import pytest
import torch
from clipseq_otam import OTAMSimilarity

import clipseq
from clipseq.testing import parametrize_with_checks


@parametrize_with_checks(OTAMSimilarity)
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


def walks(t, length):
    """Yield every walk: `length` steps that start anywhere, and stay or advance by one."""
    for start in range(t):
        for moves in itertools.product((0, 1), repeat=length - 1):
            p = list(itertools.accumulate(moves, initial=start))
            if p[-1] < t:
                yield p


def one_way(cosines, gamma):
    t, length = cosines.shape
    sums = [sum(float(cosines[i, j]) for j, i in enumerate(p)) for p in walks(t, length)]
    best = max(sums)
    mean = sum(math.exp((s - best) / gamma) for s in sums) / len(sums)
    return (best + gamma * math.log(mean)) / length


@pytest.mark.parametrize("gamma", [0.05, 0.5])
def test_is_the_mean_over_all_walks(gamma):
    (x, x_mask), (y, y_mask) = ragged(3, 7), ragged(4, 5, seed=1)
    scores = OTAMSimilarity(gamma=gamma)(x, y, x_mask, y_mask)
    pairs = itertools.product(real_steps(x, x_mask), real_steps(y, y_mask))
    expected = [(one_way(a @ b.T, gamma) + one_way(b @ a.T, gamma)) / 2 for a, b in pairs]
    torch.testing.assert_close(scores.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_start_and_end_are_free():
    """A caption inside a long recording scores 1 in one direction, whatever lies around it."""
    axes = torch.eye(8, dtype=torch.float64)
    y = axes[None, [0, 1, 2]]
    x = axes[None, [5, 6, 0, 1, 2, 7, 4]]
    found = OTAMSimilarity(gamma=1e-3).explain(x, y)
    other_way = one_way((y[0] @ x[0].T), 1e-3)
    assert found.score.item() == pytest.approx((1 + other_way) / 2, abs=5e-3)
    onto_x = found.weights[0][2:5].diagonal()
    assert bool((onto_x >= 1 / 6 - 1e-6).all())


def test_weights_are_the_gradient():
    axes = torch.eye(4, dtype=torch.float64)[None]
    steps = clipseq.unit(torch.randn(1, 5, 4, dtype=torch.float64))
    tangent = torch.randn_like(steps)
    tangent = tangent - (tangent * steps).sum(2, keepdim=True) * steps
    moved = steps.clone().requires_grad_()
    OTAMSimilarity()(axes, moved).sum().backward()
    weights = OTAMSimilarity().explain(axes, steps).weights[0]
    torch.testing.assert_close((moved.grad * tangent).sum(), (weights.T * tangent[0]).sum())
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_says_what_is_wrong_with_gamma(gamma):
    with pytest.raises(ValueError, match=f"gamma must be positive, got {gamma}"):
        OTAMSimilarity(gamma=gamma)


def test_a_constant_cosine_scores_itself_at_any_lengths():
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 7, 2)
    for cosine in (-1.0, -0.3, 0.0, 0.8, 1.0):
        step = torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
        for length in (1, 3, 12):
            scores = OTAMSimilarity()(x, step.expand(2, length, 2))
            torch.testing.assert_close(scores, torch.full_like(scores, cosine))


def test_explains_in_inference_mode():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    with torch.inference_mode():
        weights = OTAMSimilarity().explain(x, y).weights
    torch.testing.assert_close(weights, OTAMSimilarity().explain(x, y).weights)


def test_is_registered_and_joins_combined():
    info = clipseq.available_similarities()["otam"]
    assert (info.cls, info.distribution) == (OTAMSimilarity, "clipseq-otam")
    assert clipseq.get_similarity("combined").weights["otam"] == pytest.approx(info.default_weight)
