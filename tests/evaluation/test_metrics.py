"""Metrics equal slow loops written from their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipseq.evaluation.metrics import (
    average_precision,
    mean_estimate,
    median_estimate,
    ndcg,
    order_counts,
    resamples,
    retrieval_estimates,
    retrieval_ranks,
    same_caption,
    zero_shot_correct,
)


def slow_ranks(scores: list[list[float]], hits: list[list[bool]]) -> list[int]:
    """Return the place of the first hit in each sorted gallery, with wrong items first among
    equals."""
    ranks = []
    for row, row_hits in zip(scores, hits, strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], row_hits[j]))
        wrong_before = 0
        for j in order:
            if row_hits[j]:
                break
            wrong_before += 1
        ranks.append(1 + wrong_before)
    return ranks


# There are few distinct values, so ties and repeated captions are common.
score_values = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0])


@st.composite
def galleries(draw):
    count = draw(st.integers(1, 8))
    captions = draw(st.lists(st.sampled_from("abcd"), min_size=count, max_size=count))
    scores = [[draw(score_values) for _ in range(count)] for _ in range(count)]
    return scores, captions


@given(galleries())
@settings(max_examples=100, deadline=None)
def test_ranks_equal_a_sorted_list(gallery):
    scores, captions = gallery
    hits = [[a == b for b in captions] for a in captions]
    assert same_caption(captions).tolist() == hits
    ranks = retrieval_ranks(torch.tensor(scores), torch.tensor(hits))
    assert ranks.tolist() == slow_ranks(scores, hits)


def test_captions_may_be_compared_by_their_token_ids():
    assert same_caption([(1, 2), (3,), (1, 2)]).tolist() == same_caption("aba").tolist()


def test_constant_scores_rank_last():
    hits = torch.eye(7, dtype=torch.bool)
    assert retrieval_ranks(torch.zeros(7, 7), hits).tolist() == [7] * 7


def test_perfect_scores_rank_first():
    hits = torch.eye(7, dtype=torch.bool)
    assert retrieval_ranks(torch.eye(7), hits).tolist() == [1] * 7


def test_a_caption_of_a_twin_is_a_hit():
    # Item 0 scores highest with item 2, which carries the same caption.
    scores = torch.tensor([[0.1, 0.5, 0.9], [0.0, 1.0, 0.0], [0.9, 0.5, 0.1]])
    assert retrieval_ranks(scores, same_caption(["a", "b", "a"])).tolist() == [1, 1, 1]
    assert retrieval_ranks(scores, same_caption(["a", "b", "c"])).tolist() == [3, 1, 3]


@pytest.mark.usefixtures("unchecked_signatures")
def test_ranks_refuse_bad_input():
    with pytest.raises(ValueError, match="one shape"):
        retrieval_ranks(torch.zeros(2, 3), torch.eye(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"no hit at queries \[1\]"):
        retrieval_ranks(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match=r"first at \[0, 1\]"):
        retrieval_ranks(torch.tensor([[0.0, math.nan], [0.0, 0.0]]), torch.ones(2, 2).bool())


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_zero_shot_equals_a_loop(data):
    count, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    scores = [[data.draw(score_values) for _ in range(classes)] for _ in range(count)]
    labels = [data.draw(st.integers(0, classes - 1)) for _ in range(count)]
    expected = [
        float(all(row[label] > s for k, s in enumerate(row) if k != label))
        for row, label in zip(scores, labels, strict=True)
    ]
    assert zero_shot_correct(torch.tensor(scores), torch.tensor(labels)).tolist() == expected


def test_zero_shot_refuses_a_label_outside():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        zero_shot_correct(torch.zeros(1, 2), torch.tensor([2]))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_order_counts_equal_a_loop(data):
    own = data.draw(st.lists(score_values, min_size=1, max_size=5))
    pairs = data.draw(st.lists(st.tuples(score_values, st.integers(0, len(own) - 1)), max_size=12))
    wins, counts = [0.0] * len(own), [0.0] * len(own)
    for score, clip in pairs:
        counts[clip] += 1
        wins[clip] += 1.0 if own[clip] > score else 0.5 if own[clip] == score else 0.0
    result = order_counts(
        torch.tensor(own),
        torch.tensor([p[0] for p in pairs], dtype=torch.float32),
        torch.tensor([p[1] for p in pairs], dtype=torch.int64),
    )
    assert result.wins.tolist() == wins
    assert result.pairs.tolist() == counts


def test_a_score_that_ignores_order_gets_one_half():
    counts = order_counts(
        torch.tensor([0.3, 0.7]), torch.tensor([0.3, 0.7, 0.7]), torch.tensor([0, 1, 1])
    )
    estimate = mean_estimate(counts.wins, resamples(2), pairs=counts.pairs)
    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (0.5, 0.5, 0.5, 3)


def test_bootstrap_equals_numpy_over_the_same_draws():
    values = torch.rand(23, generator=torch.Generator().manual_seed(1))
    draws = resamples(23, draws=400, seed=5)
    estimate = mean_estimate(values, draws)
    means = [values.double().numpy()[row].mean() for row in draws.numpy()]
    np.testing.assert_allclose(estimate.value, values.double().mean())
    np.testing.assert_allclose(
        [estimate.low, estimate.high], np.percentile(means, [2.5, 97.5]), rtol=1e-12
    )
    ranks = torch.randint(1, 50, (24,), generator=torch.Generator().manual_seed(2))
    draws = resamples(24, draws=400, seed=5)
    median = median_estimate(ranks, draws)
    medians = [np.median(ranks.numpy()[row]) for row in draws.numpy()]
    assert median.value == np.median(ranks.numpy())
    np.testing.assert_allclose([median.low, median.high], np.percentile(medians, [2.5, 97.5]))


def test_ratio_resamples_whole_clips():
    wins, pairs = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 5.0])
    draws = resamples(3, draws=300, seed=0)
    estimate = mean_estimate(wins, draws, pairs=pairs)
    ratios = []
    for row in draws.tolist():
        total = sum(float(pairs[i]) for i in row)
        if total:
            ratios.append(sum(float(wins[i]) for i in row) / total)
    np.testing.assert_allclose(estimate.value, 4 / 6)
    np.testing.assert_allclose(
        [estimate.low, estimate.high], np.percentile(ratios, [2.5, 97.5]), rtol=1e-12
    )
    with pytest.raises(ValueError, match="no pair"):
        mean_estimate(torch.zeros(2), resamples(2), pairs=torch.zeros(2))


def test_interval_covers_the_truth_about_nineteen_times_in_twenty():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(200):
        values = (torch.rand(100, generator=generator) < 0.3).double()
        estimate = mean_estimate(values, resamples(100, draws=300, seed=trial))
        covered += estimate.low <= 0.3 <= estimate.high
    assert 180 <= covered <= 199


def test_resamples_are_seeded():
    assert torch.equal(resamples(9, seed=3), resamples(9, seed=3))
    assert not torch.equal(resamples(9, seed=3), resamples(9, seed=4))
    with pytest.raises(ValueError, match="got 0"):
        resamples(0)


def test_retrieval_estimates_follow_their_definitions():
    ranks = torch.tensor([1, 2, 5, 6, 11])
    estimates = retrieval_estimates(ranks, resamples(5))
    assert estimates["R@1"].value == pytest.approx(1 / 5)
    assert estimates["R@5"].value == pytest.approx(3 / 5)
    assert estimates["R@10"].value == pytest.approx(4 / 5)
    assert estimates["median rank"].value == 5.0
    assert estimates["MRR"].value == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 11) / 5)


def by_hand(scores, hits, k):
    """Average precision and nDCG@k, item by item: a wrong item comes first among equals."""
    precisions, gains = [], []
    for row, right in zip(scores.tolist(), hits.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        found, precision, gain = 0, 0.0, 0.0
        for place, j in enumerate(order, 1):
            if right[j]:
                found += 1
                precision += found / place
                gain += 1 / np.log2(1 + place) if place <= k else 0.0
        most = sum(1 / np.log2(1 + place) for place in range(1, min(sum(right), k) + 1))
        precisions.append(precision / sum(right))
        gains.append(gain / most)
    return precisions, gains


@given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31), st.booleans()
)
def test_average_precision_and_ndcg_follow_their_definitions(queries, items, k, seed, tied):
    rng = np.random.default_rng(seed)
    scores = rng.integers(3, size=(queries, items)) if tied else rng.normal(size=(queries, items))
    hits = rng.random((queries, items)) < 0.4
    hits[:, int(rng.integers(items))] = True
    scores, hits = torch.tensor(scores, dtype=torch.float64), torch.tensor(hits)
    precisions, gains = by_hand(scores, hits, k)
    np.testing.assert_allclose(average_precision(scores, hits), precisions, atol=1e-12)
    np.testing.assert_allclose(ndcg(scores, hits, k=k), gains, atol=1e-12)


def test_average_precision_of_constant_scores_is_the_worst():
    scores, hits = torch.zeros(2, 4), torch.tensor([[True, False, False, False]] * 2)
    assert average_precision(scores, hits).tolist() == [0.25, 0.25]
    assert ndcg(scores, hits, k=3).tolist() == [0.0, 0.0]


def test_with_one_hit_each_average_precision_is_the_reciprocal_rank():
    scores = torch.randn(20, 20)
    hits = torch.eye(20).bool()
    expected = 1 / retrieval_ranks(scores, hits).double()
    torch.testing.assert_close(average_precision(scores, hits), expected)
