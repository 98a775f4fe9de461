"""A second derivative through a similarity is right, or an error says that there is none."""

import pytest
import torch

import clipseq

SIMILARITIES = [
    ("global", {}),
    ("global", {"pool": "max"}),
    ("global", {"pool": "last"}),
    ("local", {"window": 1}),
    ("local", {"window": 3}),
    ("local", {"window": (3, 1), "stride": 2}),
    ("attention", {"num_heads": 2}),
    ("temporal", {}),
    ("temporal", {"band": 0.5}),
    ("combined", {"parts": {"global": {}, "local": {"window": 3}}}),
    ("local", {"window": 3, "embed_dim": 4}),
]
X = torch.randn(3, 7, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 5, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def scores(similarity, x, how):
    if how == "forward":
        return similarity(x, Y)
    return similarity.pairs(x, Y)


def penalty(similarity, x, how, *, create):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scores(similarity, x, how).sum(), x, create_graph=create)
    return gradient.square().sum(), x


@pytest.mark.parametrize("how", ["forward", "pairs"])
@pytest.mark.parametrize(("name", "options"), SIMILARITIES)
def test_a_gradient_penalty_is_right_or_refused(name, options, how):
    similarity = clipseq.get_similarity(name, **options).double()
    step = torch.zeros_like(X)
    step[0, 0, 0] = 1e-6
    up, down = (float(penalty(similarity, x, how, create=False)[0]) for x in (X + step, X - step))
    expected = (up - down) / 2e-6
    value, x = penalty(similarity, X, how, create=True)
    try:
        (found,) = torch.autograd.grad(value, x, allow_unused=True)
    except RuntimeError as error:
        assert "second derivative" in str(error)  # noqa: PT017
        assert name != "global"
        return
    assert float(found[0, 0, 0]) == pytest.approx(expected, abs=1e-5)


def test_the_first_derivative_with_create_graph_is_as_without():
    similarity = clipseq.get_similarity("local", window=3).double()
    one, _ = penalty(similarity, X, "forward", create=True)
    other, _ = penalty(similarity, X, "forward", create=False)
    torch.testing.assert_close(one.detach(), other)
