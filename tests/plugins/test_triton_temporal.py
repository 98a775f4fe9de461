"""The Triton kernels of temporal agree with the definition, cell by cell in float64."""

import attrs
import pytest
import torch

from clipseq import unit
from clipseq.testing import KernelCase, run_kernels
from clipseq_temporal.scores import temporal_scores


def case(batch, others, steps, length, features=8, gamma=0.1, band=None, **settings):
    generator = torch.Generator().manual_seed(steps * length)

    def side(count, steps):
        values = unit(torch.randn(count, steps, features, generator=generator))
        lengths = torch.randint(1, steps + 1, (count,), generator=generator)
        lengths[0] = steps
        return values, lengths

    (x, x_lengths), (y, y_lengths) = side(batch, steps), side(others, length)
    weights = torch.randn(batch, others, generator=generator)
    inputs = x, y, x_lengths, y_lengths, gamma, band
    return KernelCase(temporal_scores, inputs, weights, settings)


CASES = {
    "a rectangle": case(3, 2, 9, 5),
    "more y than x": case(2, 3, 4, 9),
    "much more x than y": case(2, 1, 60, 3, features=5),
    "single steps": case(2, 2, 1, 6),
    "one pair of single steps": case(1, 1, 1, 1),
    "features beyond a block": case(2, 2, 6, 5, features=70),
    "the best path alone": case(2, 2, 8, 7, gamma=0.01),
    "all paths alike": case(2, 2, 8, 7, gamma=10.0),
    "the narrowest band": case(2, 3, 11, 6, band=0.0),
    "a band": case(2, 2, 10, 12, band=0.25),
    "a band around single steps": case(2, 2, 5, 1, band=0.3),
    "a band of everything": case(2, 2, 7, 6, band=1.0),
    "a pair at a time": case(3, 2, 7, 5, WORKSPACE=1),
    "some pairs at a time": case(3, 5, 7, 6, band=0.2, WORKSPACE=2 * 4 * 12 * 16 * 4),
}


def matched(steps, length, **more):
    """Return a pair in which each step of y is near one of x, so that path weights are large."""
    found = case(1, 1, steps, length, features=16, **more)
    x, _, *rest = found.inputs
    generator = torch.Generator().manual_seed(1)
    noise = 0.03 * torch.randn(1, length, 16, generator=generator)
    at = torch.arange(length) * steps // length
    return attrs.evolve(found, inputs=(x, unit(x[:, at] + noise), *rest), weights=torch.ones(1, 1))


def one_match_of_several(**more):
    found = case(3, 2, 30, 120, features=16, gamma=0.01, **more)
    x, y, x_lengths, y_lengths, *_ = found.inputs
    x_lengths[:], y_lengths[:] = 30, 120
    y[0] = x[0].repeat_interleave(4, 0)
    return found


LONG = {
    "a long match, sharp": matched(128, 32, gamma=0.01),
    "a long match, sharp, in a band": matched(128, 32, gamma=0.01, band=0.1),
    "one match among several pairs": one_match_of_several(),
    "one match among several pairs, two at a time": one_match_of_several(
        WORKSPACE=2 * 8 * 149 * 32
    ),
    "several tiles": case(1, 1, 135, 130, features=16),
    "several tiles in a band": case(1, 1, 135, 130, features=16, band=0.1),
}
"""Cases too long for loops over cells; they are compared with torch's own path in float64."""


@pytest.fixture(scope="module")
def results():
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    coarse = attrs.evolve(CASES["features beyond a block"], precision="tf32")
    return run_kernels({**CASES, **LONG, "one product": coarse})


def score(x, y, gamma, band):
    """Return one minus the normalised soft-DTW of a pair, computed by its recursion."""
    t, length = len(x), len(y)
    width = 1.0 if band is None or min(t, length) == 1 else max(band, 0.5 / (min(t, length) - 1))

    def soft_dtw(cost):
        total = {}
        for i in range(t):
            for j in range(length):
                if abs(i / max(t - 1, 1) - j / max(length - 1, 1)) > width + 1e-12:
                    continue
                ways = [
                    total[before] + weight * cost[i, j]
                    for before, weight in (((i - 1, j), 1), ((i, j - 1), 1), ((i - 1, j - 1), 2))
                    if before in total
                ]
                if i == j == 0:
                    total[i, j] = 2 * cost[i, j]
                elif ways:
                    total[i, j] = -gamma * torch.logsumexp(-torch.stack(ways) / gamma, 0)
        return total[t - 1, length - 1]

    cost = 1 - x @ y.mT
    log_count = -soft_dtw(torch.zeros_like(cost)) / gamma
    return 1 - (soft_dtw(cost) + gamma * log_count) / (t + length)


def by_definition(case):
    x, y = (side.double().requires_grad_() for side in case.inputs[:2])
    x_lengths, y_lengths = (lengths.tolist() for lengths in case.inputs[2:4])
    scores = [
        [score(a[:t], b[:length], *case.inputs[4:]) for b, length in zip(y, y_lengths, strict=True)]
        for a, t in zip(x, x_lengths, strict=True)
    ]
    scores = torch.stack([torch.stack(row) for row in scores])
    return scores, *torch.autograd.grad((scores * case.weights).sum(), (x, y))


def by_torch(case):
    x, y = (side.double().requires_grad_() for side in case.inputs[:2])
    scores = temporal_scores(x, y, *case.inputs[2:])
    return scores, *torch.autograd.grad((scores * case.weights).sum(), (x, y))


def check(found, expected, bound, of_largest):
    (scores, *gradients), (exact, *exact_gradients) = found, expected
    assert (scores - exact).abs().max() <= bound
    for gradient, other in zip(gradients, exact_gradients, strict=True):
        assert (gradient - other).abs().max() <= of_largest * other.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_definition(name, results):
    check(results[name], by_definition(CASES[name]), 2e-6, 5e-6)


@pytest.mark.parametrize("name", LONG)
def test_kernels_agree_with_torch(name, results):
    check(results[name], by_torch(LONG[name]), 1e-6, 5e-6)


def test_one_product_has_the_precision_of_tf32(results):
    exact = by_definition(CASES["features beyond a block"])
    check(results["one product"], exact, 1e-3, 5e-3)
    assert (results["one product"][0] - exact[0]).abs().max() > 2e-6
