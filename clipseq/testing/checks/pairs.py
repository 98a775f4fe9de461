"""A check of the scores of matched pairs, and of their cost."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from clipseq.similarity import Similarity
from clipseq.testing.checks.batches import PairOfBatches
from clipseq.testing.checks.memory import allocated_bytes
from clipseq.testing.conformance import Broken, Check, Subject, check_same, tiles_of
from clipseq.testing.outcome import parameter_gradients
from clipseq.testing.strategies import DENSE, TAME, dense, sequence_pairs

_EACH = 2
"""Largest number of scores to compute for each matched pair."""

_GROWTH = 2.5
"""Largest growth of the bytes allocated when the number of pairs doubles; four for all pairs."""


def pairs(subject: Subject) -> None:
    similarity = subject.trained()

    def compare(pair: PairOfBatches, gradients: bool) -> None:
        wanted = _found(similarity, lambda *sides: similarity(*sides).diagonal(), pair, gradients)
        for elements in (similarity.tile_elements, 1):
            with tiles_of(similarity, elements):
                found = _found(similarity, similarity.pairs, pair, gradients)
            for name, value in wanted.items():
                tolerance = 1e-10 if name == "pairs" else 1e-8
                check_same(found[name], value, tolerance, name, "on the diagonal of all scores")

    def scores(pair: PairOfBatches) -> None:
        compare(pair, False)

    def all_of_it(pair: PairOfBatches) -> None:
        compare(pair, True)

    for holds, kinds in ((scores, TAME), (all_of_it, DENSE)):
        examples = sequence_pairs(features=subject.features, matched=True, empty=True, kinds=kinds)
        subject.for_all(holds, pair=examples)
    _cost(subject)


def _cost(subject: Subject) -> None:
    similarity = subject.evaluated(torch.float32)

    def score(count: int) -> None:
        x, y = (
            dense(count, 2, subject.features, seed=seed, dtype=torch.float32).requires_grad_()
            for seed in (1, 2)
        )
        similarity.pairs(x, y).sum().backward()

    count = 128
    subject.example = {"n": count, "T = L": 2, "D": subject.features}
    with torch.no_grad(), _counted(similarity) as counts:
        x, y = (dense(count, 2, subject.features, seed=s, dtype=torch.float32) for s in (1, 2))
        similarity.pairs(x, y)
    most = max(counts.values())
    if most > _EACH * count:
        raise Broken(
            f"`score` must compute at most {_EACH * count} scores for {count} matched pairs, got "
            f"{most}"
        )
    small, large = (allocated_bytes(partial(score, n)) for n in (count, 2 * count))
    if large > _GROWTH * small:
        raise Broken(
            f"twice the pairs must allocate at most {_GROWTH} times the bytes, got "
            f"{large / small:.1f} times as many: {small} for {count} pairs and {large} for "
            f"{2 * count}"
        )


def _found(
    similarity: Similarity,
    score: Callable[..., torch.Tensor],
    pair: PairOfBatches,
    gradients: bool,
) -> dict[str, torch.Tensor]:
    """Return the scores of matched pairs and, if asked for, the gradients of a weighted sum."""
    similarity.zero_grad()
    x, y = (side.values.clone().requires_grad_() for side in pair)
    scores = score(x, y, pair[0].mask, pair[1].mask)
    if not gradients:
        return {"pairs": scores.detach()}
    weights = 1.5 + torch.cos(1 + 2.3 * torch.arange(len(scores), dtype=scores.dtype))
    (scores * weights).sum().backward()
    named = parameter_gradients(similarity)
    sides = {"the gradient of x": x, "the gradient of y": y}
    return (
        {"pairs": scores.detach()}
        | {name: torch.zeros_like(v) if v.grad is None else v.grad for name, v in sides.items()}
        | {f"the gradient of the parameter {name}": value for name, value in named.items()}
    )


@contextlib.contextmanager
def _counted(similarity: Similarity) -> Iterator[dict[int, int]]:
    """Count the scores that `score` of a similarity, and of each of its parts, computes."""
    members = [module for module in similarity.modules() if isinstance(module, Similarity)]
    counts = dict.fromkeys(range(len(members)), 0)

    def listen(k: int, score: Callable[..., torch.Tensor], *sides: Any) -> torch.Tensor:
        scores = score(*sides)
        counts[k] += scores.numel()
        return scores

    try:
        for k, member in enumerate(members):
            member.score = partial(listen, k, member.score)  # type: ignore[method-assign]
        yield counts
    finally:
        for member in members:
            vars(member).pop("score", None)


CHECKS = (
    Check(
        "pairs",
        "pairs gives the diagonal of all scores and its gradients, at a cost that grows with the "
        "number of pairs, not with its square",
        pairs,
        "a `score_pairs` or `score_all_pairs` of your own: row i is the pair (x[i], y[i]); exclude "
        "padding as in `score`, and do not score all pairs to take the diagonal",
    ),
)
