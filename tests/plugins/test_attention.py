import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import ragged, real_steps

import clipseq
from clipseq_attention import scores


def attended(query, steps, heads, temperature):
    """Return what one unit step attends to, head by head and feature by feature."""
    size = math.ceil(len(query) / heads)
    heads = math.ceil(len(query) / size)
    parts = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        logits = [heads * float(query[part] @ s[part]) / temperature for s in steps]
        top = max(logits)
        weights = [math.exp(z - top) for z in logits]
        parts.append(sum(w * s[part] for w, s in zip(weights, steps, strict=True)) / sum(weights))
    return torch.cat(parts)


def one_way(queries, steps, heads, temperature):
    cosines = [
        float(torch.cosine_similarity(q, attended(q, steps, heads, temperature), dim=0))
        for q in queries
    ]
    return sum(cosines) / len(cosines)


@given(
    heads=st.integers(1, 9),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    features=st.sampled_from([2, 8, 9, 24]),
    seed=st.integers(0, 2**16),
)
def test_is_the_mean_cosine_with_what_each_step_attends_to(heads, temperature, features, seed):
    x, x_mask = ragged(2, 5, features, seed=seed)
    y, y_mask = ragged(3, 7, features, seed=seed + 1)
    similarity = clipseq.get_similarity("attention", num_heads=heads, temperature=temperature)
    scores = similarity.double()(x, y, x_mask, y_mask)
    for i, a in enumerate(real_steps(x, x_mask)):
        for j, b in enumerate(real_steps(y, y_mask)):
            a_unit, b_unit = (s / s.norm(dim=1, keepdim=True) for s in (a, b))
            expected = (
                one_way(a_unit, b_unit, heads, temperature)
                + one_way(b_unit, a_unit, heads, temperature)
            ) / 2
            # The option is a float32 parameter, so temperature 0.1 is exact to 1e-8.
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-6)
            if i == j:
                pairs = similarity.pairs(x, y[:2], x_mask, y_mask[:2])
                assert pairs[i].item() == pytest.approx(expected, abs=1e-6)


def test_a_cold_single_head_is_maxsim():
    x, y = torch.randn(3, 9, 8), torch.randn(4, 5, 8)
    cold = clipseq.get_similarity("attention", num_heads=1, temperature=1e-4)
    expected = clipseq.get_similarity("local", window=1)(x, y)
    torch.testing.assert_close(cold(x, y), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("features", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_gradients_of_steps_and_temperature(features):
    # With 40 features, the width of 2 heads exceeds the lengths of the sequences, and that of 3
    # does not.
    x, x_mask = ragged(2, 5, features, seed=5)
    y, y_mask = ragged(3, 4, features, seed=6)
    similarity = clipseq.get_similarity("attention", num_heads=2).double()

    def scores(a, b, log_temperature):
        return torch.func.functional_call(
            similarity, {"log_temperature": log_temperature}, (a, b, x_mask, y_mask)
        )

    inputs = (x, y, similarity.log_temperature.detach().clone())
    assert torch.autograd.gradcheck(scores, [value.requires_grad_() for value in inputs])


def test_values_that_cancel_have_no_direction():
    step = torch.tensor([1.0, 0.0])
    x = torch.stack([torch.tensor([0.0, 1.0])])[None].requires_grad_()
    y = torch.stack([step, -step])[None]
    # The step of x attends equally to two opposite steps; each of those attends only to x.
    score = clipseq.get_similarity("attention", num_heads=1)(x, y)
    assert score.item() == pytest.approx(0.0, abs=1e-6)
    score.backward()
    assert x.grad.isfinite().all()


def test_align_is_the_attention_of_both_directions():
    x, y = torch.randn(1, 4, 6), torch.randn(1, 3, 6)
    weights = clipseq.get_similarity("attention", num_heads=1).explain(x, y).weights[0]
    logits = torch.cosine_similarity(x[0, :, None], y[0, None], dim=-1) / 0.1
    torch.testing.assert_close(weights, (logits.softmax(1) + logits.softmax(0)) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads must be a positive integer"),
        ({"num_heads": True}, "num_heads must be a positive integer"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"temperature": 1e-50}, "temperature must be positive"),
        ({"temperature": float("inf")}, "temperature must be positive"),
        ({"temperature": "hot"}, "temperature must be positive"),
    ],
)
def test_refuses_bad_options(options, message, unchecked_signatures):
    with pytest.raises(ValueError, match=message):
        clipseq.get_similarity("attention", **options)


def test_takes_the_integers_of_numpy(unchecked_signatures):
    similarity = clipseq.get_similarity("attention", num_heads=np.int64(2))
    assert type(similarity.num_heads) is int
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = clipseq.get_similarity("attention", num_heads=2)(x, y)
    assert torch.equal(similarity(x, y), expected)


def test_tiles_are_large_where_starting_an_operation_is_what_costs():
    x, y = torch.empty(128, 8, 248, 32), torch.empty(128, 8, 77, 32)
    there = x.to("meta"), y.to("meta")
    assert scores._count_tiles(x, y) > 40 * len(x)
    # At most one tile per sequence of a full-size batch, with at most 256 MiB of cells.
    assert scores._count_tiles(*there) == len(x)
    assert 4 * 8 * 248 * 77 * scores._pairs_of_a_tile(there[0], 77) <= 2**28


def test_the_temperature_moves_to_the_device_and_dtype_of_the_steps():
    # Kernels read the scale on the device of the steps.
    similarity = clipseq.get_similarity("attention", num_heads=2).bfloat16()
    heads = torch.empty(1, 2, 3, 4, device="meta")
    scale = similarity._scale(heads)
    assert (scale.device, scale.dtype) == (heads.device, torch.float32)
