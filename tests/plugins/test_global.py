from typing import get_args, get_type_hints

import pytest
import torch
from ragged import ragged, real_steps

import clipseq
from clipseq_global.similarity import POOLS, GlobalSimilarity

ORACLES = {
    "mean": lambda steps: steps.mean(0),
    "max": lambda steps: steps.max(0).values,
    "first": lambda steps: steps[0],
    "last": lambda steps: steps[-1],
}


@pytest.mark.parametrize("pool", POOLS)
def test_is_the_cosine_of_the_pooled_real_steps(pool):
    x, x_mask = ragged(3, 7, 5, seed=1)
    y, y_mask = ragged(4, 6, 5, seed=2)
    scores = clipseq.get_similarity("global", pool=pool)(x, y, x_mask, y_mask)
    for i, a in enumerate(real_steps(x, x_mask)):
        for j, b in enumerate(real_steps(y, y_mask)):
            # Add an oracle here for a new pooling.
            expected = torch.cosine_similarity(ORACLES[pool](a), ORACLES[pool](b), dim=0)
            assert scores[i, j].item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_signature_names_every_pooling():
    assert get_args(get_type_hints(GlobalSimilarity.__init__)["pool"]) == tuple(POOLS)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", [torch.finfo(torch.float32).max / 2, 1e-40])
def test_steps_of_any_finite_size_can_be_pooled(pool, size):
    x = (torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(1)) * size).requires_grad_()
    similarity = clipseq.get_similarity("global", pool=pool)
    scores = similarity(x, torch.ones(1, 3, 5))
    expected = similarity(x.detach().double(), torch.ones(1, 3, 5).double())
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-5)
    scores.sum().backward()
    assert x.grad.isfinite().all()


def test_rejects_another_pool(unchecked_signatures):
    with pytest.raises(ValueError, match="pool must be one of mean, max, first, last, got 'sum'"):
        clipseq.get_similarity("global", pool="sum")


@pytest.mark.parametrize(("pool", "cell"), [("first", (1, 0)), ("last", (4, 3))])
def test_align_of_one_step_pools_points_at_that_pair(pool, cell):
    x, y = torch.randn(1, 6, 4), torch.randn(1, 5, 4)
    x_mask = torch.tensor([[False, True, True, True, True, False]])
    y_mask = torch.tensor([[True, True, False, True, False]])
    weights = clipseq.get_similarity("global", pool=pool).explain(x, y, x_mask, y_mask).weights
    assert weights[0].nonzero().tolist() == [list(cell)]


def test_align_of_max_pooling_adds_up_to_the_score_where_no_feature_disagrees():
    x, y = torch.rand(2, 6, 4), torch.rand(2, 5, 4)
    alignment = clipseq.get_similarity("global", pool="max").explain(x, y)
    torch.testing.assert_close(alignment.weights.sum((1, 2)), alignment.score)


@pytest.mark.parametrize("pool", POOLS)
def test_align_weighs_every_pair_that_counts(pool):
    alignment = clipseq.get_similarity("global", pool=pool).explain(
        torch.rand(2, 6, 4), torch.rand(2, 5, 4)
    )
    assert (alignment.weights.sum((1, 2)) > 0).all()
