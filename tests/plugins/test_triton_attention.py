"""attention's Triton kernels against the definition, pair by pair in float64."""

import pytest
import torch
from through_triton import computed

from clipseq import unit
from clipseq_attention.scores import attention_scores


def case(batch, others, steps, length, heads, size, temperature=0.1, **more):
    generator = torch.Generator().manual_seed(steps * length)

    def side(count, steps):
        values = unit(torch.randn(count, steps, heads * size, generator=generator))
        lengths = torch.randint(1, steps + 1, (count,), generator=generator)
        lengths[0] = steps
        # The padding holds other steps: who looked at it would attend to them.
        return values.unflatten(2, (heads, size)).transpose(1, 2), lengths

    (x, x_lengths), (y, y_lengths) = side(batch, steps), side(others, length)
    return {
        "similarity": "attention",
        "x": x,
        "y": y,
        "x_lengths": x_lengths,
        "y_lengths": y_lengths,
        "weights": torch.randn(batch, others, generator=generator),
        "options": (torch.tensor(heads / temperature),),
        **more,
    }


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
    """What one step attends to cancels; another step is zero."""
    one = case(1, 2, 3, 2, heads=1, size=2)
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8]])
    y = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    return one | {"x": x[None, None], "y": torch.stack((y, y.flip(0) + x[:1]))[:, None]}


CASES["nothing attended to"] = with_nothing_attended_to()


def opposite(temperature):
    """What is attended to all but cancels."""
    one = case(2, 2, 5, 6, heads=1, size=8, temperature=temperature)
    half = one["y"][:, :, :3]
    return one | {"y": torch.cat((half, -half), 2), "y_lengths": torch.tensor([6, 6])}


IN_SCORES_ALONE = {
    "logits beyond what half of float32's digits tell apart": case(
        2, 3, 9, 20, heads=2, size=8, temperature=3e-8
    ),
    "a norm below the least": opposite(2e6),
}
"""Gradients are beyond float32 there."""

CASES["a small norm"] = opposite(30.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    coarse = {"one product": CASES["heads of 40"] | {"precision": "tf32"}}
    large = {
        "large gradients": CASES["a rectangle"]
        | {"weights": 1e30 * CASES["a rectangle"]["weights"]}
    }
    cases = CASES | IN_SCORES_ALONE | coarse | large
    return computed(tmp_path_factory.mktemp("attention"), cases)


def one_way(queries, keys, scale):
    """Mean cosine of queries (H, t, d) with what they attend to among keys (H, l, d)."""
    attended = (scale * queries @ keys.mT).softmax(2) @ keys
    along = (queries * attended).sum((0, 2))
    squares = attended.square().sum((0, 2))
    # Clamped from inside: the root's own gradient at zero is infinite.
    something = squares >= 1e-12
    norm = torch.where(something, squares, 1.0).sqrt()
    return torch.where(something, along / norm, 0.0).mean()


def by_definition(case):
    x, y, scale = (
        value.double().requires_grad_() for value in (case["x"], case["y"], *case["options"])
    )
    scores = [
        [
            (one_way(a[:, :t], b[:, :length], scale) + one_way(b[:, :length], a[:, :t], scale)) / 2
            for b, length in zip(y, case["y_lengths"].tolist(), strict=True)
        ]
        for a, t in zip(x, case["x_lengths"].tolist(), strict=True)
    ]
    scores = torch.stack([torch.stack(row) for row in scores])
    return scores, *torch.autograd.grad((scores * case["weights"]).sum(), (x, y, scale))


def check(found, expected, bound, of_largest):
    (scores, *gradients), (exact, *exact_gradients) = found, expected
    assert (scores - exact).abs().max() <= bound
    for gradient, other in zip(gradients[:2], exact_gradients[:2], strict=True):
        assert (gradient - other).abs().max() <= of_largest * other.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_definition(name, results):
    exact = by_definition(CASES[name])
    # Where little is left of a sum, little is left of its digits.
    looser = 20 if name == "a small norm" else 1
    check(results[name], exact, looser * 1e-6, looser * 5e-6)
    # By way of the logarithm of the scale, it is of the size of a score's, or what is left of it.
    to_log = CASES[name]["options"][0] * (results[name][3] - exact[3])
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
    # Through the interpreter, which this process lacks, they would raise.
    monkeypatch.setenv("CLIPSEQ_TRITON", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    one = case(1, 1, 3, 2, heads=1, size=130)
    arguments = one["x"], one["y"], one["x_lengths"], one["y_lengths"], *one["options"]
    check((attention_scores(*arguments),), by_definition(one)[:1], 1e-6, 0)
