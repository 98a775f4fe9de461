"""Matched pairs score as they do alone, at their own cost, and one side can be prepared once."""

import pytest
import torch

import clipseq

NAMES = ("attention", "combined", "global", "local", "temporal")


class MeanCosine(clipseq.Similarity):
    """The mean cosine of all pairs of steps, with a record of the pairs of every call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def score(self, x, y):
        self.calls.append((len(x.values), len(y.values)))
        total = x.values.sum(1) @ y.values.sum(1).T
        return total / (x.lengths[:, None] * y.lengths)

    def align(self, x, y):
        return torch.bmm(x.values, y.values.mT).clamp(min=0)


def batch(count, steps, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, steps, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(count, steps, generator=generator) < 0.6
    mask[:, -1] = True
    values[~mask] = float("nan")
    return values.to(dtype), mask


def mean_cosine(x, y):
    """Return the score of one pair of sequences without padding, by its definition."""
    cosines = [torch.dot(a, b) / (a.norm() * b.norm()) for a in x for b in y]
    return sum(cosines) / len(cosines)


def test_a_plugin_scores_pairs_one_by_one_without_writing_anything():
    x, x_mask = batch(5, 4, 1)
    y, y_mask = batch(5, 3, 2)
    similarity = MeanCosine()
    pairs = similarity.pairs(x, y, x_mask, y_mask)
    assert similarity.calls == [(1, 1)] * 5
    expected = [mean_cosine(x[i][x_mask[i]], y[i][y_mask[i]]) for i in range(5)]
    torch.testing.assert_close(pairs, torch.stack(expected), atol=1e-12, rtol=0)


def test_pairs_are_recomputed_in_backward_tile_by_tile():
    x, x_mask = batch(5, 4, 1)
    y, y_mask = batch(5, 3, 2)
    whole, tiled = MeanCosine(), MeanCosine()
    tiled.tile_elements = 2 * 4 * 3
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    found = []
    for similarity in (whole, tiled):
        xs, ys = x.clone().requires_grad_(), y.clone().requires_grad_()
        (similarity.pairs(xs, ys, x_mask, y_mask) * weights).sum().backward()
        found.append((xs.grad, ys.grad))
    torch.testing.assert_close(*found)
    assert len(whole.calls) == 5
    assert len(tiled.calls) == 10


@pytest.mark.parametrize("name", NAMES)
def test_each_pair_is_scored_as_it_is_alone(name):
    similarity = clipseq.get_similarity(name).double()
    x, x_mask = batch(6, 9, 1)
    y, y_mask = batch(6, 5, 2)
    pairs = similarity.pairs(x, y, x_mask, y_mask)
    for i in range(6):
        a, b = x[i][x_mask[i]], y[i][y_mask[i]]
        torch.testing.assert_close(pairs[i], similarity(a[None], b[None])[0, 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_diagonal_and_of_finite_differences(name):
    similarity = clipseq.get_similarity(name).double()
    x, x_mask = batch(3, 4, 1)
    y, y_mask = batch(3, 3, 2)
    x, y = (side.nan_to_num(0.0).requires_grad_() for side in (x, y))
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    wanted = [x, y, *similarity.parameters()]

    def total(score):
        return (score(x, y, x_mask, y_mask) * weights).sum()

    found = torch.autograd.grad(total(similarity.pairs), wanted)
    whole = torch.autograd.grad(total(lambda *sides: similarity(*sides).diagonal()), wanted)
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-9)
    # A central difference along one direction of each input, independent of both backward passes.
    step = 1e-5
    with torch.no_grad():
        for value, gradient in zip(wanted, found, strict=True):
            along = torch.randn_like(value)
            value += step * along
            above = total(similarity.pairs)
            value -= 2 * step * along
            below = total(similarity.pairs)
            value += step * along
            slope = (above - below) / (2 * step)
            torch.testing.assert_close((gradient * along).sum(), slope, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_single_and_half_precision_are_computed_in_float32(name):
    similarity = clipseq.get_similarity(name)
    for dtype in (torch.float32, torch.bfloat16):
        x, x_mask = batch(6, 9, 1, dtype)
        y, y_mask = batch(6, 5, 2, dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pairs = similarity.pairs(x, y, x_mask, y_mask)
        assert pairs.dtype == torch.float32
        diagonal = similarity(x, y, x_mask, y_mask).diagonal()
        torch.testing.assert_close(pairs, diagonal, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_sequence_scores_minus_one_and_gets_no_gradient(name):
    similarity = clipseq.get_similarity(name).double()
    x, x_mask = batch(4, 5, 1)
    y, y_mask = batch(4, 3, 2)
    x_mask[1] = False
    y_mask[2] = False
    x.requires_grad_()
    y.requires_grad_()
    pairs = similarity.pairs(x, y, x_mask, y_mask)
    assert pairs[1:3].tolist() == [-1.0, -1.0]
    pairs.sum().backward()
    for side in (x, y):
        assert not side.grad[1:3].any()
        assert side.grad[0].any()
    assert not x.grad[~x_mask].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_side_is_prepared_alone(name):
    similarity = clipseq.get_similarity(name, embed_dim=8).double()
    with torch.no_grad():
        similarity.y_projection.weight.add_(0.1)  # the two sides now differ
    x, x_mask = batch(4, 5, 1)
    y, y_mask = batch(4, 3, 2)
    corpus = similarity.prepare_side("y", y, y_mask)
    queries = similarity.prepare_side("x", x, x_mask)
    assert similarity.compare(queries, corpus).equal(similarity(x, y, x_mask, y_mask))
    pairs = similarity.pairs(x, y, x_mask, y_mask)
    assert similarity.compare_pairs(queries, corpus).equal(pairs)


@pytest.mark.parametrize(
    ("side", "arguments", "error", "message"),
    [
        ("z", (torch.ones(2, 3, 4),), ValueError, "side must be 'x' or 'y', got 'z'"),
        ("y", (torch.ones(3, 4),), ValueError, r"y must have the shape \(C, L, D\), got \(3, 4\)"),
        ("x", (torch.ones(2, 3, 4).long(),), TypeError, "x must be floating point"),
        (
            "y",
            (torch.ones(2, 3, 4), torch.ones(2, 3)),
            TypeError,
            r"y_mask must be .* torch\.arange\(L\)",
        ),
        (
            "x",
            (torch.ones(2, 3, 5),),
            ValueError,
            "x must have D=4 features, .* embed_dim, got D=5",
        ),
    ],
)
def test_errors_of_a_side_name_it(side, arguments, error, message, unchecked_signatures):
    with pytest.raises(error, match=message):
        clipseq.get_similarity("global", embed_dim=4).prepare_side(side, *arguments)


def test_pairs_take_equal_numbers():
    similarity = clipseq.get_similarity("global")
    x, y = torch.ones(2, 3, 4), torch.ones(3, 3, 4)
    with pytest.raises(ValueError, match="same batch size, as pairs takes matched pairs, got 2 an"):
        similarity.pairs(x, y)
    with pytest.raises(ValueError, match="as compare_pairs takes matched pairs, got 2 and 3"):
        similarity.compare_pairs(*similarity.prepare(x, y))


def test_wrong_results_of_a_plugin_are_named(unchecked_signatures):
    class WrongPairs(MeanCosine):
        def score_pairs(self, x, y):
            return self.score(x, y)

    class WrongScore(MeanCosine):
        def score(self, x, y):
            return super().score(x, y)[0]

    x = torch.randn(2, 4, 3)
    with pytest.raises(
        TypeError, match=r"WrongPairs.score_pairs must return .*\(2,\), got \(2, 2\)"
    ):
        WrongPairs().pairs(x, x)
    with pytest.raises(TypeError, match=r"WrongScore.score must return .*\(1, 1\), got \(1,\)"):
        WrongScore().pairs(x, x)


def test_pairs_is_final(fresh_registry):
    class OwnPairs(MeanCosine):
        def pairs(self, x, y, x_mask=None, y_mask=None):
            return x.sum((1, 2))

    with pytest.raises(clipseq.PluginError, match="overrides pairs, which is final"):
        clipseq.register_similarity("own_pairs", OwnPairs)
