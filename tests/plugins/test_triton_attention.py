"""The Triton kernels of attention agree with the definition, pair by pair in float64."""

import attrs
import pytest
import torch

from clipseq import unit
from clipseq.testing import KernelCase, run_kernels
from clipseq_attention.scores import attention_scores


def case(batch, others, steps, length, heads, size, temperature=0.1, **settings):
    generator = torch.Generator().manual_seed(steps * length)

    def side(count, steps):
        values = unit(torch.randn(count, steps, heads * size, generator=generator))
        lengths = torch.randint(1, steps + 1, (count,), generator=generator)
        lengths[0] = steps
        # The padding holds other steps: kernels that read it would attend to them.
        return values.unflatten(2, (heads, size)).transpose(1, 2), lengths

    (x, x_lengths), (y, y_lengths) = side(batch, steps), side(others, length)
    weights = torch.randn(batch, others, generator=generator)
    inputs = x, y, x_lengths, y_lengths, torch.tensor(heads / temperature)
    return KernelCase(attention_scores, inputs, weights, settings)


CASES = {
    "a rectangle": case(3, 2, 9, 5, heads=2, size=8),
    "more y than x": case(2, 4, 3, 17, heads=3, size=4),
    "single steps": case(2, 2, 1, 1, heads=2, size=4),
    "one head": case(2, 2, 6, 5, heads=1, size=12),
    "heads of 40": case(2, 2, 7, 20, heads=2, size=40),
    "heads of 128": case(1, 2, 20, 6, heads=2, size=128),
    "several blocks of both": case(2, 2, 70, 35, heads=2, size=32),
    "many pairs": case(2, 2, 70, 35, heads=2, size=32, FEW=1),
    "attention to one step": case(2, 2, 9, 7, heads=2, size=8, temperature=0.02),
    "attention to all steps": case(2, 2, 9, 7, heads=2, size=8, temperature=30.0),
    "a pair at a time": case(3, 2, 9, 5, heads=2, size=8, WORKSPACE=1),
    "some pairs at a time": case(3, 5, 7, 6, heads=2, size=8, WORKSPACE=6 * 4 * 7 * 2 * 34),
}


def with_nothing_attended_to():
    """Return a case in which what one step attends to cancels, and another step is zero."""
    one = case(1, 2, 3, 2, heads=1, size=2)
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8]])
    y = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    sides = x[None, None], torch.stack((y, y.flip(0) + x[:1]))[:, None]
    return attrs.evolve(one, inputs=(*sides, *one.inputs[2:]))


CASES["nothing attended to"] = with_nothing_attended_to()


def opposite(temperature):
    """Return a case in which what a step attends to nearly cancels."""
    one = case(2, 2, 5, 6, heads=1, size=8, temperature=temperature)
    x, y, x_lengths, _, scale = one.inputs
    half = y[:, :, :3]
    opposed = torch.cat((half, -half), 2)
    return attrs.evolve(one, inputs=(x, opposed, x_lengths, torch.tensor([6, 6]), scale))


IN_SCORES_ALONE = {
    "logits beyond what half of float32's digits tell apart": case(
        2, 3, 9, 20, heads=2, size=8, temperature=3e-8
    ),
    "a norm below the least": opposite(2e6),
}
"""Cases whose gradients float32 cannot represent."""

CASES["a small norm"] = opposite(30.0)


@pytest.fixture(scope="module")
def results():
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    rectangle = CASES["a rectangle"]
    more = {
        "one product": attrs.evolve(CASES["heads of 40"], precision="tf32"),
        "large gradients": attrs.evolve(rectangle, weights=1e30 * rectangle.weights),
    }
    return run_kernels({**CASES, **IN_SCORES_ALONE, **more})


def one_way(queries, keys, scale):
    """Return the mean cosine of queries (H, t, d) with what they attend to in keys (H, l, d)."""
    attended = (scale * queries @ keys.mT).softmax(2) @ keys
    along = (queries * attended).sum((0, 2))
    squares = attended.square().sum((0, 2))
    # Clamp the square, since the gradient of the root at zero is infinite.
    something = squares >= 1e-12
    norm = torch.where(something, squares, 1.0).sqrt()
    return torch.where(something, along / norm, 0.0).mean()


def by_definition(case):
    x, y, scale = (case.inputs[k].double().requires_grad_() for k in (0, 1, 4))
    x_lengths, y_lengths = (lengths.tolist() for lengths in case.inputs[2:4])
    scores = [
        [
            (one_way(a[:, :t], b[:, :length], scale) + one_way(b[:, :length], a[:, :t], scale)) / 2
            for b, length in zip(y, y_lengths, strict=True)
        ]
        for a, t in zip(x, x_lengths, strict=True)
    ]
    scores = torch.stack([torch.stack(row) for row in scores])
    return scores, *torch.autograd.grad((scores * case.weights).sum(), (x, y, scale))


def check(found, expected, bound, of_largest):
    (scores, *gradients), (exact, *exact_gradients) = found, expected
    assert (scores - exact).abs().max() <= bound
    for gradient, other in zip(gradients[:2], exact_gradients[:2], strict=True):
        assert (gradient - other).abs().max() <= of_largest * other.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_definition(name, results):
    exact = by_definition(CASES[name])
    # A sum that nearly cancels keeps few digits.
    looser = 20 if name == "a small norm" else 1
    check(results[name], exact, looser * 1e-6, looser * 5e-6)
    # The gradient to the logarithm of the scale is of the size of a score, or smaller.
    to_log = CASES[name].inputs[4] * (results[name][3] - exact[3])
    assert to_log.abs() <= 1e-5


@pytest.mark.parametrize("name", IN_SCORES_ALONE)
def test_scores_agree_with_the_definition(name, results):
    check(results[name][:1], by_definition(IN_SCORES_ALONE[name])[:1], 1e-6, 0)


def test_gradients_may_be_large(results):
    for large, usual in zip(
        results["large gradients"][1:], results["a rectangle"][1:], strict=True
    ):
        torch.testing.assert_close(large / 1e30, usual, rtol=1e-5, atol=1e-7)


def test_one_product_has_the_precision_of_tf32(results):
    exact = by_definition(CASES["heads of 40"])
    check(results["one product"], exact, 1e-3, 5e-3)
    assert (results["one product"][0] - exact[0]).abs().max() > 1e-6


def test_larger_heads_are_left_to_torch(monkeypatch):
    # The kernels would raise here, since this process has no interpreter.
    monkeypatch.setenv("CLIPSEQ_TRITON", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    one = case(1, 1, 3, 2, heads=1, size=130)
    check((attention_scores(*one.inputs),), by_definition(one)[:1], 1e-6, 0)
