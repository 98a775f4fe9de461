"""Retrieval, zero-shot and order metrics over score matrices, and bootstrap intervals.

These are pure functions of tensors: no model, no data set, no randomness except the seeded
bootstrap. They take tensors of any device, and compute means in float64 on the CPU: Apple's GPUs do
not have it. Every tie counts against the model (or, for order accuracy, as one half), so that
constant scores gain nothing.
"""

from collections.abc import Callable, Hashable, Sequence

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipseq.engine.options import check_dense, check_kind, finite_number, whole_number

RECALL_AT = (1, 5, 10)


def same_caption(captions: Sequence[Hashable]) -> Bool[Tensor, "N N"]:
    """Return a matrix that is True at (i, j) if items i and j carry the same caption.

    Args:
        captions: captions, or keys that represent them.

    Raises:
        TypeError: `captions` is not a list of captions.
    """
    check_kind("captions", captions, Sequence, "a list of captions")
    for caption in captions:
        check_kind("captions", caption, Hashable, "a list of captions")
    number: dict[Hashable, int] = {}
    groups = torch.tensor([number.setdefault(caption, len(number)) for caption in captions])
    return groups[:, None] == groups[None, :]


def retrieval_ranks(scores: Float[Tensor, "N M"], hits: Bool[Tensor, "N M"]) -> Int[Tensor, "N"]:
    """Return the rank of the best hit of each query, counted from 1.

    ``rank_i = 1 + #{j not a hit : s_ij >= max over hits h of s_ih}``

    Args:
        scores: score of each query (row) with each gallery item (column).
        hits: the correct gallery items of each query, at least one per row.

    Returns:
        One rank per query. Ties count against the model: a wrong item with the score of the best
        hit comes before it, so with constant scores the hits rank last and not first. Other hits do
        not lower the rank. Each wrong item does, even if several have the same caption.

    Raises:
        TypeError: an argument is not a tensor of its kind.
        ValueError: shapes differ, a query has no hit, or a score is NaN.
    """
    _check_hits(scores, hits)
    best = scores.masked_fill(~hits, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((scores >= best) & ~hits).sum(dim=1)


def average_precision(
    scores: Float[Tensor, "N M"], hits: Bool[Tensor, "N M"]
) -> Float[Tensor, "N"]:
    """Return the average precision of each query, in float64 on the CPU; its mean is MAP.

    ``AP_i = 1/H_i sum over hits h of (number of hits up to the place of h) / (place of h)``

    with the H_i hits of the query, and places counted from 1. With one hit it is 1 / rank. Ties
    count against the model, as in `retrieval_ranks`.

    Args:
        scores: score of each query (row) with each gallery item (column).
        hits: the correct gallery items of each query, at least one per row.

    Raises:
        TypeError: an argument is not a tensor of its kind.
        ValueError: shapes differ, a query has no hit, or a score is NaN.
    """
    found = _in_order(scores, hits)
    places = torch.arange(1, found.shape[1] + 1, dtype=torch.float64)
    precision = found.cumsum(1) / places
    return (precision * found).sum(1) / found.sum(1)


def ndcg(
    scores: Float[Tensor, "N M"], hits: Bool[Tensor, "N M"], *, k: int = 10
) -> Float[Tensor, "N"]:
    """Return the normalised discounted cumulative gain of each query, in float64 on the CPU.

    ``nDCG@k = DCG / (the largest possible DCG), DCG = sum over hits at places p <= k of
    1 / log2(1 + p)`` (Järvelin and Kekäläinen, 2002), with a gain of 1 for a hit. Ties count
    against the model, as in `retrieval_ranks`.

    Args:
        scores: score of each query (row) with each gallery item (column).
        hits: the correct gallery items of each query, at least one per row.
        k: number of places that count.

    Raises:
        TypeError: an argument is not a tensor of its kind, or `k` is not a whole number.
        ValueError: shapes differ, a query has no hit, a score is NaN, or k is below 1.
    """
    k = min(whole_number("k", k, least=1), 2**31)
    found = _in_order(scores, hits)[:, :k]
    gains = 1 / torch.log2(torch.arange(2, found.shape[1] + 2, dtype=torch.float64))
    ideal = gains.cumsum(0)[hits.cpu().sum(1).clamp(max=found.shape[1]) - 1]
    return (found * gains).sum(1) / ideal


def _in_order(scores: Float[Tensor, "N M"], hits: Bool[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Return 1 for a hit and 0 for another item, by score, with the hits last among equals."""
    _check_hits(scores, hits)
    scores, hits = scores.cpu(), hits.cpu()
    order = hits.int().argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return hits.gather(1, order).double()


def zero_shot_correct(scores: Float[Tensor, "N K"], labels: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return 1.0 for each clip whose right class scores strictly above every other, else 0.0.

    Args:
        scores: score of each clip with the caption of each of the K classes.
        labels: index of the right class of each clip.

    Raises:
        TypeError: an argument is not a tensor of its kind.
        ValueError: a label outside 0..K-1, or not one for each clip, or a NaN score.
    """
    _check_tensor("scores", scores, 2, torch.is_floating_point, "floats (N, K)")
    _check_tensor("labels", labels, 1, _is_integer, "integers (N,)")
    if len(labels) != len(scores):
        raise ValueError(f"labels must be one for each of {len(scores)} clips, got {len(labels)}")
    _refuse_nan(scores)
    classes = scores.shape[1]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.tolist()[:10]}")
    hits = torch.nn.functional.one_hot(labels.long().to(scores.device), classes).bool()
    return (retrieval_ranks(scores, hits) == 1).cpu().double()


@attrs.frozen(eq=False)
class OrderCounts:
    """Comparisons of each clip's caption with its permuted captions: `wins`, and all `pairs`."""

    wins: Float[Tensor, "N"]
    pairs: Float[Tensor, "N"]


def order_counts(
    own: Float[Tensor, "N"], permuted: Float[Tensor, "P"], owner: Int[Tensor, "P"]
) -> OrderCounts:
    """Count for each clip the permuted captions that score below its own caption.

    Order accuracy is ``sum(wins) / sum(pairs)``: the share of pairs (clip, permuted caption) in
    which the caption with the actions in their true order scores higher. A tie counts one half,
    so a score that ignores order gets 1/2, the chance level.

    Args:
        own: score of each clip with its own caption.
        permuted: score of each permuted caption with its clip.
        owner: index of the clip of each permuted caption.

    Raises:
        TypeError: an argument is not a tensor of its kind.
        ValueError: an owner outside 0..N-1, or not one for each permuted caption, or a NaN score.
    """
    _check_tensor("own", own, 1, torch.is_floating_point, "floats (N,)")
    _check_tensor("permuted", permuted, 1, torch.is_floating_point, "floats (P,)")
    _check_tensor("owner", owner, 1, _is_integer, "integers (P,)")
    if len(owner) != len(permuted):
        raise ValueError(
            f"owner must be one for each of {len(permuted)} permuted captions, got {len(owner)}"
        )
    owner = owner.long()
    own, permuted, owner = own.cpu(), permuted.cpu(), owner.cpu()
    _refuse_nan(own)
    _refuse_nan(permuted)
    clips = own.shape[0]
    if owner.numel() and not 0 <= int(owner.min()) <= int(owner.max()) < clips:
        raise ValueError(f"owner must lie in 0..{clips - 1}, got {owner.tolist()[:10]}")
    right = own[owner].double()
    wrong = permuted.double()
    won = (right > wrong).double() + 0.5 * (right == wrong).double()
    empty = torch.zeros(clips, dtype=torch.float64)
    return OrderCounts(
        wins=empty.index_add(0, owner, won),
        pairs=empty.index_add(0, owner, torch.ones_like(won)),
    )


@attrs.frozen
class Estimate:
    """The value of a metric with its 95 % bootstrap interval, over `count` clips (or pairs)."""

    value: float
    low: float
    high: float
    count: int


def resamples(count: int, *, draws: int = 1000, seed: int = 0) -> Int[Tensor, "R N"]:
    """Return the indices of `draws` bootstrap samples, each of `count` clips with replacement.

    Use one set of resamples for all metrics of an evaluation, so that the intervals of two metrics,
    or of two models on the same clips, come from the same draws.

    Raises:
        TypeError: a number is not whole.
        ValueError: `count` or `draws` is below 1, or there would be more than 2^31 indices.
    """
    count, draws = whole_number("count", count, least=1), whole_number("draws", draws, least=1)
    seed = whole_number("seed", seed, most=2**63 - 1)
    if count * draws > 2**31:
        raise ValueError(
            f"count and draws must make at most {2**31} indices, got {count} times {draws}; draw "
            "fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(count, (draws, count), generator=generator)


def mean_estimate(
    values: Float[Tensor, "N"],
    draws: Int[Tensor, "R N"],
    *,
    pairs: Float[Tensor, "N"] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of per-clip values with a percentile bootstrap interval over clips.

    With `pairs`, the statistic is the ratio ``sum(values) / sum(pairs)``. Whole clips are
    resampled, because the pairs of one clip depend on each other. Resamples without any pair are
    left out of the percentiles.

    Args:
        values: a value for each clip, such as the result of `average_precision`.
        draws: the result of `resamples`.
        pairs: what each value is divided by.
        level: share of the samples that the interval holds.

    Raises:
        TypeError: an argument is not a tensor of its kind, or `level` is not a number.
        ValueError: shapes do not fit, an index is not of a clip, no clip has a pair, or `level` is
            not between 0 and 1.
    """
    _check_tensor("values", values, 1, _is_real, "numbers (N,)")
    _check_tensor("draws", draws, 2, _is_integer, "integers (R, N)")
    if pairs is not None:
        _check_tensor("pairs", pairs, 1, _is_real, "numbers (N,)")
    sizes = [len(values), *([] if pairs is None else [len(pairs)])]
    if len(set(sizes)) > 1 or not draws.numel() or not int(draws.min()) >= 0:
        raise ValueError(f"values and pairs must be one for each clip, got {sizes}, and draws some")
    if int(draws.max()) >= len(values):
        raise ValueError(
            f"draws must be indices of the {len(values)} values, got {int(draws.max())}; use "
            f"resamples({len(values)})"
        )
    if not 0 < finite_number("level", level) < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
    values, draws = values.cpu().double(), draws.cpu()
    weights = torch.ones_like(values) if pairs is None else pairs.cpu().double()
    total = float(weights.sum())
    if total == 0:
        raise ValueError("pairs must not be zero for all clips, got no pair to average")
    weight_sums = weights[draws].sum(dim=1)
    filled = weight_sums > 0
    samples = values[draws].sum(dim=1)[filled] / weight_sums[filled]
    return _with_interval(float(values.sum()) / total, samples, level, round(total))


def median_estimate(
    values: Int[Tensor, "N"], draws: Int[Tensor, "R N"], *, level: float = 0.95
) -> Estimate:
    """Return the median of per-clip values with a bootstrap interval.

    The median of an even number of values is the mean of the two in the middle.
    """
    numbers, draws = values.cpu().double(), draws.cpu()
    samples = _median(numbers[draws])
    return _with_interval(float(_median(numbers)), samples, level, len(numbers))


def retrieval_estimates(ranks: Int[Tensor, "N"], draws: Int[Tensor, "R N"]) -> dict[str, Estimate]:
    """Return R@1, R@5, R@10, median rank and mean reciprocal rank (MRR) of one direction.

    R@k is the share of queries whose best hit is among the first k. Queries are resampled, but the
    gallery is not, so that ranks are comparable between resamples.
    """
    ranks = ranks.cpu()
    estimates = {f"R@{k}": mean_estimate((ranks <= k).double(), draws) for k in RECALL_AT}
    estimates["median rank"] = median_estimate(ranks, draws)
    estimates["MRR"] = mean_estimate(1.0 / ranks.double(), draws)
    return estimates


def _median(values: Float[Tensor, "*R N"]) -> Float[Tensor, "*R"]:
    # torch.quantile rejects more than 16 million numbers.
    count = values.shape[-1]
    ordered = values.sort(dim=-1).values
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2.0


def _with_interval(value: float, samples: Float[Tensor, "R"], level: float, count: int) -> Estimate:
    tail = (1.0 - level) / 2.0
    edges = torch.tensor([tail, 1.0 - tail], dtype=samples.dtype)
    low, high = samples.quantile(edges).tolist()
    return Estimate(value=value, low=low, high=high, count=count)


def _check_hits(scores: Tensor, hits: Tensor) -> None:
    _check_tensor("scores", scores, 2, torch.is_floating_point, "floats (N, M)")
    _check_tensor("hits", hits, 2, lambda values: values.dtype == torch.bool, "booleans (N, M)")
    if scores.shape != hits.shape:
        raise ValueError(
            f"scores and hits must have one shape, got {tuple(scores.shape)} and "
            f"{tuple(hits.shape)}"
        )
    _refuse_nan(scores)
    lonely = (~hits.any(dim=1)).nonzero().flatten().tolist()
    if lonely:
        raise ValueError(
            f"hits must be at least one per query, got no hit at queries {lonely[:10]}"
        )


def _check_tensor(
    name: str, value: object, ndim: int, is_kind: Callable[[Tensor], bool], what: str
) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of {what}, got {type(value).__name__}")
    check_dense(name, value)
    if value.ndim != ndim:
        raise ValueError(f"{name} must be a tensor of {what}, got shape {tuple(value.shape)}")
    if not is_kind(value):
        raise TypeError(f"{name} must be a tensor of {what}, got {value.dtype}")


def _is_integer(values: Tensor) -> bool:
    return not values.is_floating_point() and not values.is_complex() and values.dtype != torch.bool


def _is_real(values: Tensor) -> bool:
    return not values.is_complex()


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        where = scores.isnan().nonzero()[0].tolist()
        raise ValueError(f"scores must not be NaN, got NaN, first at {where}")
