import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import ragged, real_steps

import clipseq
from clipseq_local import scores as local_implementation


def windows(steps, window, stride):
    """Return the score by the definition, window by window."""
    found, start = [], 0
    while True:
        covered = steps[start : start + window]
        found.append(covered.mean(0) / covered.mean(0).norm())
        start += stride
        if start - stride + window >= len(steps) or start >= len(steps):
            return torch.stack(found)


def maxsim(u, v):
    over_v = sum(max(float(a @ b) for b in v) for a in u) / len(u)
    over_u = sum(max(float(a @ b) for a in u) for b in v) / len(v)
    return (over_v + over_u) / 2


@given(
    window=st.integers(1, 8),
    other=st.integers(1, 8),
    stride=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_is_maxsim_over_windows(window, other, stride, seed):
    x, x_mask = ragged(3, 7, 4, seed=seed)
    y, y_mask = ragged(2, 6, 4, seed=seed + 1)
    similarity = clipseq.get_similarity("local", window=(window, other), stride=stride)
    scores = similarity(x, y, x_mask, y_mask)
    for i, a in enumerate(real_steps(x, x_mask)):
        for j, b in enumerate(real_steps(y, y_mask)):
            expected = maxsim(windows(a, window, stride), windows(b, other, stride))
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-10)
            if i == j:
                pairs = similarity.pairs(x[:2], y, x_mask[:2], y_mask)
                assert pairs[i].item() == pytest.approx(expected, abs=1e-12)


@given(
    share=st.floats(0.01, 0.99),
    other=st.integers(1, 8),
    stride=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_a_window_below_one_is_a_share_of_each_sequence(share, other, stride, seed):
    share = round(share, 2)
    x, x_mask = ragged(3, 9, 4, seed=seed)
    y, y_mask = ragged(2, 6, 4, seed=seed + 1)
    similarity = clipseq.get_similarity("local", window=(share, other), stride=stride)
    x.requires_grad_(True)
    scores = similarity(x, y, x_mask, y_mask)
    expected = torch.zeros_like(scores)
    for i, a in enumerate(real_steps(x, x_mask)):
        size = max(1, int(len(a) * np.float32(share) + np.float32(0.5)))
        for j, b in enumerate(real_steps(y, y_mask)):
            u, v = windows(a, size, stride), windows(b, other, stride)
            expected[i, j] = ((u @ v.mT).amax(1).mean() + (u @ v.mT).amax(0).mean()) / 2
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-10)
    for found, wanted in zip(
        torch.autograd.grad(scores.sum(), x), torch.autograd.grad(expected.sum(), x), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_windows_of_a_share_share_their_weights_among_their_steps():
    x, y = torch.eye(4)[None, [0, 0, 1, 1, 2, 2]], torch.eye(4)[None, :3]
    relative = clipseq.get_similarity("local", window=1 / 3).explain(x, y)
    fixed = clipseq.get_similarity("local", window=(2, 1)).explain(x, y)
    torch.testing.assert_close(relative.weights, fixed.weights)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("direction", ["x", "y"])
def test_one_direction_is_the_maxsim_of_colbert(direction, keep, monkeypatch):
    """The query is x or y; ColBERT's sum over the query's steps is divided by their number."""
    x, x_mask = ragged(3, 7, 4, seed=1)
    y, y_mask = ragged(2 if keep else 40, 6, 4, seed=2)  # many pairs: their places are not kept
    x, y = x.requires_grad_(), y.requires_grad_()
    similarity = clipseq.get_similarity("local", window=1, direction=direction)
    scores = similarity(x, y, x_mask, y_mask)
    rows = []
    for a in real_steps(x, x_mask):
        row = []
        for b in real_steps(y, y_mask):
            query, document = (a, b) if direction == "x" else (b, a)
            cosines = torch.cosine_similarity(query[:, None], document[None], dim=-1)
            row.append(cosines.max(dim=1).values.sum() / len(query))
        rows.append(torch.stack(row))
    expected = torch.stack(rows)
    torch.testing.assert_close(scores, expected)
    weights = torch.randn_like(scores)
    found = torch.autograd.grad((scores * weights).sum(), (x, y))
    wanted = torch.autograd.grad((expected * weights).sum(), (x, y))
    torch.testing.assert_close(found, wanted)
    pairs = similarity.pairs(x[:2], y[:2], x_mask[:2], y_mask[:2])
    torch.testing.assert_close(pairs, expected.diagonal()[:2])


def test_both_directions_are_the_mean_of_each():
    x, y = torch.randn(3, 7, 4).double(), torch.randn(5, 6, 4).double()
    one, other, both = (
        clipseq.get_similarity("local", window=(2, 1), direction=direction)
        for direction in ("x", "y", "both")
    )
    torch.testing.assert_close(both(x, y), (one(x, y) + other(x, y)) / 2)
    torch.testing.assert_close(
        one(x, y), clipseq.get_similarity("local", window=(1, 2), direction="y")(y, x).T
    )
    weights = one.explain(x[:3], y[:3]).weights
    torch.testing.assert_close(
        both.explain(x[:3], y[:3]).weights, (weights + other.explain(x[:3], y[:3]).weights) / 2
    )


def test_a_wrong_direction_is_named(unchecked_signatures):
    with pytest.raises(ValueError, match="direction must be one of both, x, y, got 'queries'"):
        clipseq.get_similarity("local", direction="queries")


@pytest.mark.parametrize("others", [4, 31, 32, 70, 110])  # maxima are found in two ways
def test_a_window_of_one_step_is_symmetrised_mean_maxsim(others):
    x = torch.randn(3, 9, 8, dtype=torch.float64, requires_grad=True)
    y = torch.randn(others, 20, 8, dtype=torch.float64, requires_grad=True)
    cosines = torch.cosine_similarity(x[:, None, :, None], y[None, :, None], dim=-1)
    expected = (cosines.amax(3).mean(2) + cosines.amax(2).mean(2)) / 2
    found = clipseq.get_similarity("local", window=1)(x, y)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for gradient, wanted in zip(
        torch.autograd.grad((found * weights).sum(), (x, y)),
        torch.autograd.grad((expected * weights).sum(), (x, y)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted)


@given(window=st.integers(12, 10**6), seed=st.integers(0, 2**16))
def test_a_window_longer_than_both_is_global(window, seed):
    x, x_mask = ragged(3, 12, 5, seed=seed)
    y, y_mask = ragged(4, 9, 5, seed=seed + 1)
    torch.testing.assert_close(
        clipseq.get_similarity("local", window=window)(x, y, x_mask, y_mask),
        clipseq.get_similarity("global")(x, y, x_mask, y_mask),
    )


def test_takes_the_integers_of_numpy(unchecked_signatures):
    similarity = clipseq.get_similarity("local", window=np.int64(4), stride=(np.int32(3), 2))
    assert (similarity.window, similarity.stride) == ((4, 4), (3, 2))
    assert {type(number) for number in (*similarity.window, *similarity.stride)} == {int}


@pytest.mark.parametrize("option", ["window", "stride"])
@pytest.mark.parametrize(
    "value", [0, -1, 1.5, (1, 0), (1, 2, 3), True, np.True_, np.array([2, 3]), torch.tensor(True)]
)
def test_refuses_what_is_no_number_of_steps(option, value, unchecked_signatures):
    with pytest.raises(ValueError, match=f"{option} must be a positive integer"):
        clipseq.get_similarity("local", **{option: value})


def test_gradient_is_that_of_the_definition():
    x, x_mask = ragged(2, 5, 3, seed=5)
    y, y_mask = ragged(3, 4, 3, seed=6)
    similarity = clipseq.get_similarity("local", window=2)
    assert torch.autograd.gradcheck(
        lambda a, b: similarity(a, b, x_mask, y_mask),
        (x.requires_grad_(), y.requires_grad_()),
    )


@pytest.mark.parametrize(
    ("window", "stride"),
    [(2, 1), (16, 1), (150, 1), (7, 3), (3, 11), (150, 64), (90, 200), (5, 10**9)],
)
def test_windows_of_many_steps_and_their_gradient_are_those_of_the_definition(window, stride):
    # One product takes fewer steps and windows than there are, except with the longest window.
    x, x_mask = ragged(3, 300, 4, seed=window)
    similarity = clipseq.get_similarity("local", window=window, stride=stride)
    tree = similarity.prepare(x.requires_grad_(), x, x_mask, x_mask)[0].tree
    weights = torch.randn_like(tree.values)
    found = torch.autograd.grad((tree.values * weights).sum(), x)[0]
    expected = [windows(steps, window, stride) for steps in real_steps(x, x_mask)]
    total = torch.zeros(())
    for units, made, weight in zip(tree.values, expected, weights, strict=True):
        torch.testing.assert_close(units[: len(made)], made)
        assert not units[len(made) :].any()
        total = total + (made * weight[: len(made)]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, x)[0])


def test_align_of_single_steps_holds_the_maxima():
    x, y = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    alignment = clipseq.get_similarity("local", window=1).explain(x, y)
    cosines = torch.cosine_similarity(x[0, :, None], y[0, None], dim=-1)
    expected = torch.zeros(4, 3)
    for t in range(4):
        expected[t, cosines[t].argmax()] += cosines[t].max().clamp(min=0) / 8
    for step in range(3):
        expected[cosines[:, step].argmax(), step] += cosines[:, step].max().clamp(min=0) / 6
    torch.testing.assert_close(alignment.weights[0], expected)


@pytest.mark.parametrize("window", [1, 5])
def test_prepared_windows_without_a_real_start_are_zero(window):
    x, mask = ragged(4, 12, 3, seed=3, prefix=True)
    prepared, _ = clipseq.get_similarity("local", window=window).prepare(x, x, mask, mask)
    values, real = prepared.tree
    assert not real.all()
    assert (values[~real] == 0).all()
    assert (values[real].norm(dim=-1) > 0.99).all()


@pytest.mark.parametrize("window", [1, 4, 16])
def test_windows_too_large_for_a_sum_have_a_mean(window):
    size = torch.finfo(torch.float32).max / 2
    x = (torch.rand(2, 9, 5, generator=torch.Generator().manual_seed(1)) * size).requires_grad_()
    similarity = clipseq.get_similarity("local", window=window)
    scores = similarity(x, torch.ones(1, 3, 5))
    expected = similarity(x.detach().double(), torch.ones(1, 3, 5).double())
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-6)
    scores.sum().backward()
    assert x.grad.isfinite().all()


def test_many_gradients_at_once_are_those_one_by_one():
    x, y = torch.randn(2, 9, 5, requires_grad=True), torch.randn(2, 7, 5)
    scores = clipseq.get_similarity("local", window=3)(x, y)
    each = torch.eye(4).view(4, 2, 2)
    (found,) = torch.autograd.grad(scores, x, each, is_grads_batched=True, retain_graph=True)
    for one, gradient in zip(each, found, strict=True):
        (expected,) = torch.autograd.grad(scores, x, one, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("batch", "others"), [(2, 9), (9, 2), (40, 40)])  # places kept or not
def test_gradients_of_some_pairs_at_a_time_are_those_of_all(batch, others, monkeypatch):
    x = torch.randn(batch, 9, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(others, 7, 5, dtype=torch.float64, requires_grad=True)
    x_mask = torch.arange(9) < torch.randint(1, 10, (batch, 1))
    scores = clipseq.get_similarity("local", window=1)(x, y, x_mask)
    arriving = torch.randn_like(scores)
    expected = torch.autograd.grad(scores, (x, y), arriving, retain_graph=True)
    # Backward works on one x with three y at a time.
    monkeypatch.setattr(local_implementation, "_ENTRIES", 30)
    found = torch.autograd.grad(scores, (x, y), arriving)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other)
