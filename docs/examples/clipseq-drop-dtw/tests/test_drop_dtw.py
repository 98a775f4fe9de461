"""`drop_dtw` equals its definition: the best choice of steps to keep, by DTW over each choice."""

import itertools
import math

import pytest
import torch
from clipseq_drop_dtw import DropDTWSimilarity

import clipseq
from clipseq.testing import parametrize_with_checks


@parametrize_with_checks(DropDTWSimilarity)
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


def dtw(cost):
    """Return the least cost of a path, by recursion; diagonal steps and the first count twice."""
    total = {}
    for i, j in itertools.product(range(len(cost)), range(len(cost[0]))):
        c = cost[i][j]
        ways = [
            total[cell] + weight * c
            for cell, weight in (((i - 1, j), 1), ((i, j - 1), 1), ((i - 1, j - 1), 2))
            if cell in total
        ]
        total[i, j] = min(ways) if ways else 2 * c
    return total[len(cost) - 1, len(cost[0]) - 1]


def subsets(n):
    for size in range(1, n + 1):
        yield from itertools.combinations(range(n), size)


def by_enumeration(x, y, drop_cost):
    """Return the score of the best choice of kept steps."""
    t, length = len(x), len(y)
    cost = (1 - x @ y.T).tolist()
    best = drop_cost * (t + length)
    for rows, columns in itertools.product(subsets(t), subsets(length)):
        kept = dtw([[cost[i][j] for j in columns] for i in rows])
        best = min(best, kept + drop_cost * (t + length - len(rows) - len(columns)))
    return 1 - best / (t + length)


@pytest.mark.parametrize("drop_cost", [0.0, 0.3, 0.7, 1.1, 2.0])
def test_is_the_best_choice_of_steps(drop_cost):
    (x, x_mask), (y, y_mask) = ragged(3, 6), ragged(3, 5, seed=1)
    scores = DropDTWSimilarity(drop_cost=drop_cost)(x, y, x_mask, y_mask)
    pairs = itertools.product(real_steps(x, x_mask), real_steps(y, y_mask))
    expected = [by_enumeration(a, b, drop_cost) for a, b in pairs]
    torch.testing.assert_close(scores.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_at_a_high_cost_nothing_is_dropped():
    x, y = torch.randn(2, 8, 4, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)
    scores = DropDTWSimilarity(drop_cost=4.0)(x, y)
    temporal = clipseq.get_similarity("temporal", gamma=1e-6)(x, y)
    torch.testing.assert_close(scores, temporal, atol=1e-5, rtol=0)


def test_an_outlier_costs_what_dropping_costs():
    axes = torch.eye(6, dtype=torch.float64)
    x, y = axes[None, [0, 1, 5, 2, 3]], axes[None, [0, 1, 2, 3]]
    similarity = DropDTWSimilarity(drop_cost=0.4)
    found = similarity.explain(x, y)
    assert found.score.item() == pytest.approx(1 - 0.4 / 9)
    expected = torch.zeros(5, 4, dtype=torch.float64)
    expected[[0, 1, 3, 4], [0, 1, 2, 3]] = 2.0
    torch.testing.assert_close(found.weights[0], expected)


def test_drops_an_outlier_among_steps_that_match_the_same_step():
    one = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    three = torch.cat((one, -one, one), 1)
    similarity = DropDTWSimilarity(drop_cost=0.5)
    for x, y, expected in ((one, three, [[2.0, 0.0, 1.0]]), (three, one, [[2.0], [0.0], [1.0]])):
        found = similarity.explain(x, y)
        assert found.score.item() == pytest.approx(1 - 0.5 / 4)
        torch.testing.assert_close(found.weights[0], torch.tensor(expected, dtype=torch.float64))


def test_weights_are_the_gradient():
    axes = torch.eye(4, dtype=torch.float64)[None]
    steps = clipseq.unit(torch.randn(1, 5, 4, dtype=torch.float64))
    tangent = torch.randn_like(steps)
    tangent = tangent - (tangent * steps).sum(2, keepdim=True) * steps
    moved = steps.clone().requires_grad_()
    similarity = DropDTWSimilarity(drop_cost=0.9)
    similarity(axes, moved).sum().backward()
    weights = similarity.explain(axes, steps).weights[0]
    assert weights.sum() > 0
    torch.testing.assert_close((moved.grad * tangent).sum(), (weights.T * tangent[0]).sum() / 9)


@pytest.mark.parametrize("drop_cost", [-0.1, math.inf, math.nan])
def test_says_what_is_wrong_with_drop_cost(drop_cost):
    with pytest.raises(ValueError, match="drop_cost must be finite and at least 0"):
        DropDTWSimilarity(drop_cost=drop_cost)


def test_a_constant_cosine_scores_itself_at_any_lengths():
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(2, 7, 2)
    for cosine in (0.4, 0.8, 1.0):
        step = torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
        for length in (1, 3, 12):
            scores = DropDTWSimilarity()(x, step.expand(2, length, 2))
            torch.testing.assert_close(scores, torch.full_like(scores, cosine))


def test_explains_in_inference_mode():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    with torch.inference_mode():
        weights = DropDTWSimilarity().explain(x, y).weights
    torch.testing.assert_close(weights, DropDTWSimilarity().explain(x, y).weights)


def test_is_registered_and_joins_combined():
    info = clipseq.available_similarities()["drop_dtw"]
    assert (info.cls, info.distribution) == (DropDTWSimilarity, "clipseq-drop-dtw")
    assert clipseq.get_similarity("combined").weights["drop_dtw"] == pytest.approx(
        info.default_weight
    )
