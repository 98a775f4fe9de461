"""`sinkhorn` equals Sinkhorn's iterations in loops, and optimal transport by enumeration."""

import itertools
import math

import pytest
import torch
from clipseq_sinkhorn import SinkhornSimilarity

import clipseq
from clipseq.testing import parametrize_with_checks


@parametrize_with_checks(SinkhornSimilarity)
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


def by_loops(x, y, epsilon, iterations):
    """Return score and plan of one pair, by iterations on scaling vectors, not in log space."""
    t, length = len(x), len(y)
    cost = [[1 - float(a @ b) for b in y] for a in x]
    kernel = [[math.exp(-c / epsilon) for c in row] for row in cost]
    right = [1.0] * length
    for _ in range(iterations):
        left = [1 / sum(kernel[i][j] * right[j] / length for j in range(length)) for i in range(t)]
        right = [1 / sum(kernel[i][j] * left[i] / t for i in range(t)) for j in range(length)]
    dual = sum(epsilon * math.log(u) / t for u in left)
    dual += sum(epsilon * math.log(v) / length for v in right)
    plan = [
        [left[i] * kernel[i][j] * right[j] / (t * length) for j in range(length)] for i in range(t)
    ]
    return 1 - dual, plan


@pytest.mark.parametrize("iterations", [1, 2, 30])
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_is_sinkhorn(epsilon, iterations):
    (x, x_mask), (y, y_mask) = ragged(3, 6), ragged(4, 5, seed=1)
    similarity = SinkhornSimilarity(epsilon=epsilon, iterations=iterations)
    scores = similarity(x, y, x_mask, y_mask)
    for i, a in enumerate(real_steps(x, x_mask)):
        for j, b in enumerate(real_steps(y, y_mask)):
            expected, plan = by_loops(a, b, epsilon, iterations)
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-10)
            weights = similarity.explain(
                x[i : i + 1], y[j : j + 1], x_mask[[i]], y_mask[[j]]
            ).weights
            found = weights[0][x_mask[i]][:, y_mask[j]]
            torch.testing.assert_close(found, torch.tensor(plan, dtype=torch.float64))


def test_the_optimum_counts_cost_and_divergence():
    """The code computes the dual; the primal, from the plan, must equal it at the optimum."""
    (x, x_mask), (y, y_mask) = ragged(1, 6), ragged(1, 5, seed=1)
    similarity = SinkhornSimilarity(iterations=500)
    found = similarity.explain(x, y, x_mask, y_mask)
    ((a,), (b,)) = real_steps(x, x_mask), real_steps(y, y_mask)
    plan = found.weights[0][x_mask[0]][:, y_mask[0]]
    divergence = (plan * (plan * len(a) * len(b)).log()).sum()
    expected = 1 - (plan * (1 - a @ b.T)).sum() - 0.1 * divergence
    torch.testing.assert_close(found.score[0], expected)


@pytest.mark.parametrize(("t", "length"), [(4, 4), (5, 5), (2, 6), (3, 6), (2, 3)])
def test_a_small_epsilon_is_optimal_transport(t, length):
    """With equal shares, the extreme plans are permutations of steps cut to equal pieces."""
    x, y = torch.randn(1, t, 3, dtype=torch.float64), torch.randn(1, length, 3, dtype=torch.float64)
    size = math.lcm(t, length)
    everywhere = [torch.ones(1, n, dtype=torch.bool) for n in (t, length)]
    ((a,), (b,)) = (real_steps(s, m) for s, m in zip((x, y), everywhere, strict=True))
    cosines = (a @ b.T).tolist()
    best = max(
        sum(cosines[k * t // size][p * length // size] for k, p in enumerate(order)) / size
        for order in itertools.permutations(range(size))
    )
    epsilon = 0.003
    score = SinkhornSimilarity(epsilon=epsilon, iterations=3000)(x, y).item()
    # The divergence takes off at most its largest value, the log of the number of steps.
    assert best - epsilon * math.log(t * length) - 1e-9 <= score <= best + 1e-6


def test_a_large_epsilon_is_the_mean_cosine():
    x, y = torch.randn(1, 4, 3, dtype=torch.float64), torch.randn(1, 6, 3, dtype=torch.float64)
    score = SinkhornSimilarity(epsilon=1e6)(x, y)
    mean = (clipseq.unit(x[0]) @ clipseq.unit(y[0]).T).mean()
    torch.testing.assert_close(score[0, 0], mean, atol=1e-5, rtol=0)


def test_the_plan_has_the_marginals_and_is_the_gradient():
    (x, x_mask), (y, y_mask) = ragged(3, 6), ragged(3, 5, seed=1)
    similarity = SinkhornSimilarity(iterations=500)
    plan = similarity.explain(x, y, x_mask, y_mask).weights
    for sums, mask in ((plan.sum(2), x_mask), (plan.sum(1), y_mask)):
        torch.testing.assert_close(sums, mask / mask.sum(1, keepdim=True).double())
    # With steps along the axes, the cosines to y are the entries of y.
    axes = torch.eye(4, dtype=torch.float64)[None]
    steps = clipseq.unit(torch.randn(1, 5, 4, dtype=torch.float64))
    tangent = torch.randn_like(steps)
    tangent = tangent - (tangent * steps).sum(2, keepdim=True) * steps
    moved = steps.clone().requires_grad_()
    similarity(axes, moved).sum().backward()
    expected = (similarity.explain(axes, steps).weights[0].T * tangent[0]).sum()
    torch.testing.assert_close((moved.grad * tangent).sum(), expected)


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_gradient_is_exact_before_the_iterations_converge(iterations):
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 3, 3, dtype=torch.float64, requires_grad=True)
    similarity = SinkhornSimilarity(epsilon=0.05, iterations=iterations)
    assert torch.autograd.gradcheck(similarity, (x, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive, got 0.0"),
        ({"epsilon": float("nan")}, "epsilon must be positive, got nan"),
        ({"iterations": 0}, "iterations must be a positive integer, got 0"),
        ({"iterations": 2.0}, "iterations must be a positive integer, got 2.0"),
    ],
)
def test_says_what_is_wrong_with_an_option(options, message):
    with pytest.raises(ValueError, match=message):
        SinkhornSimilarity(**options)


def test_a_constant_cosine_scores_itself_at_any_lengths():
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 7, 2)
    for cosine in (-1.0, -0.3, 0.0, 0.8, 1.0):
        step = torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
        for length in (1, 3, 12):
            scores = SinkhornSimilarity()(x, step.expand(2, length, 2))
            torch.testing.assert_close(scores, torch.full_like(scores, cosine))


def test_explains_in_inference_mode():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    with torch.inference_mode():
        weights = SinkhornSimilarity().explain(x, y).weights
    torch.testing.assert_close(weights, SinkhornSimilarity().explain(x, y).weights)


def test_is_registered_and_joins_combined():
    info = clipseq.available_similarities()["sinkhorn"]
    assert (info.cls, info.distribution) == (SinkhornSimilarity, "clipseq-sinkhorn")
    assert clipseq.get_similarity("combined").weights["sinkhorn"] == pytest.approx(
        info.default_weight
    )
