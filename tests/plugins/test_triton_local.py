"""The Triton kernels of local agree with the definition, pair by pair in float64."""

import attrs
import pytest
import torch

from clipseq import unit
from clipseq.testing import KernelCase, run_kernels
from clipseq_local.scores import maxima


def case(batch, others, steps, length, features, keep=True, x_weight=1, **settings):
    generator = torch.Generator().manual_seed(steps * length)

    def side(count, steps):
        values = unit(torch.randn(count, steps, features, generator=generator))
        lengths = torch.randint(1, steps + 1, (count,), generator=generator)
        lengths[0] = steps
        # The padding holds other steps: kernels that read it would find maxima there.
        return values, lengths

    (x, x_lengths), (y, y_lengths) = side(batch, steps), side(others, length)
    weights = torch.randn(batch, others, generator=generator)
    return KernelCase(maxima, (x, y, x_lengths, y_lengths, keep, x_weight), weights, settings)


CASES = {
    "a rectangle": case(3, 2, 9, 5, 8),
    "indices found again": case(3, 2, 9, 5, 8, keep=False),
    "more y than x": case(2, 4, 3, 17, 8),
    "features beyond a block": case(2, 2, 7, 6, 70),
    "best matches of x alone": case(3, 2, 9, 5, 8, x_weight=2),
    "best matches of y alone": case(2, 2, 9, 140, 8, x_weight=0),
    "one direction with large counts": case(1, 2, 1500, 3, 4, x_weight=2),
    "single steps": case(2, 3, 1, 1, 4),
    "two features": case(2, 2, 4, 3, 2),
    "x of several tiles": case(2, 2, 300, 7, 40),
    "y of several blocks": case(2, 2, 9, 140, 16),
    "both, a row at a time": case(3, 2, 130, 140, 16, keep=False, WORKSPACE=1),
    "more than half precision counts": case(1, 2, 2060, 3, 4),
    "more than half precision counts, swapped": case(2, 1, 3, 2060, 4),
}


@pytest.fixture(scope="module")
def results():
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    coarse = attrs.evolve(CASES["features beyond a block"], precision="tf32")
    return run_kernels({**CASES, "one product": coarse, "ties": ties()})


def ties():
    step, other = torch.eye(2)
    one = case(1, 1, 2, 3, 2)
    x, y = torch.stack((step, step))[None], torch.stack((step, other, step))[None]
    return attrs.evolve(one, inputs=(x, y, *one.inputs[2:]), weights=torch.ones(1, 1))


def by_definition(case):
    x, y = (side.double().requires_grad_() for side in case.inputs[:2])
    x_lengths, y_lengths = (lengths.tolist() for lengths in case.inputs[2:4])
    x_weight = case.inputs[5]
    scores = [
        [
            (x_weight * cosines.amax(1).mean() + (2 - x_weight) * cosines.amax(0).mean()) / 2
            for b, length in zip(y, y_lengths, strict=True)
            for cosines in [a[:t] @ b[:length].mT]
        ]
        for a, t in zip(x, x_lengths, strict=True)
    ]
    scores = torch.stack([torch.stack(row) for row in scores])
    return scores, *torch.autograd.grad((scores * case.weights).sum(), (x, y))


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_definition(name, results):
    scores, *gradients = results[name]
    exact, *exact_gradients = by_definition(CASES[name])
    assert (scores - exact).abs().max() <= 1e-6
    for gradient, other in zip(gradients, exact_gradients, strict=True):
        assert (gradient - other).abs().max() <= 1e-6 * other.abs().max()


def test_one_product_has_the_precision_of_tf32(results):
    scores, *gradients = results["one product"]
    exact, *exact_gradients = by_definition(CASES["features beyond a block"])
    assert 1e-6 < (scores - exact).abs().max() <= 1e-3
    for gradient, other in zip(gradients, exact_gradients, strict=True):
        assert (gradient - other).abs().max() <= 1e-3 * other.abs().max()


def test_one_of_equal_maxima_has_the_gradient(results):
    scores, to_x, to_y = results["ties"]
    # Both x find one of two equal y. These two y find one of two equal x, and the third y any x.
    assert scores.item() == pytest.approx((1 + 2 / 3) / 2)
    step, other = torch.eye(2)
    shares = to_y[0] @ step * 2
    assert sorted(shares[[0, 2]].tolist()) == pytest.approx([1 / 3, 1 + 1 / 3])
    torch.testing.assert_close(to_y[0, 1], step / 6)
    # The totals are those of the definition: each maximum adds its partner once.
    torch.testing.assert_close(to_x[0].sum(0), step * (1 / 2 + 1 / 3) + other / 6)
    torch.testing.assert_close(to_y[0].sum(0), step * (1 / 2 + 1 / 2))
