"""Checks of the alignments that `explain` returns for matched pairs."""

import torch

from clipseq.sequences import Alignment, Sequences
from clipseq.similarity import Similarity
from clipseq.testing.checks.batches import PairOfBatches
from clipseq.testing.conformance import Broken, Check, Subject, check_finite, check_only, check_same
from clipseq.testing.outcome import to_front
from clipseq.testing.strategies import DENSE, sequence_pairs


def explain_checked(similarity: Similarity, x: Sequences, y: Sequences) -> Alignment:
    """Return the result of `explain`, after checking its shapes."""
    found = similarity.explain(x.values, y.values, x.mask, y.mask)
    shape = (*x.mask.shape, y.mask.shape[1])
    if found.weights.shape != shape or found.mask.shape != shape or found.score.shape != shape[:1]:
        raise Broken(
            f"score, weights and mask must have the shapes {shape[:1]}, {shape} and {shape}, got "
            f"{tuple(found.score.shape)}, {tuple(found.weights.shape)} and "
            f"{tuple(found.mask.shape)}"
        )
    return found


def alignment_weights(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = pair
        found = explain_checked(similarity, x, y)
        check_finite(found.weights, "weight")
        negative = found.weights < 0
        if bool(negative.any()):
            index = tuple(int(k) for k in negative.nonzero()[0])
            raise Broken(
                f"weight{list(index)} must not be negative, got {float(found.weights[index]):.6g}"
            )
        real = x.mask[:, :, None] & y.mask[:, None, :]
        if not torch.equal(found.mask, real):
            raise Broken("mask must be True exactly where both steps are real, got another mask")
        check_only(found.weights, ~real, 0.0, "the weight of padding, weight")
        scores = similarity(x.values, y.values, x.mask, y.mask).diagonal()
        check_same(found.score, scores, 1e-8, "the score of explain", "in a call")

    subject.for_all(holds, pair=sequence_pairs(features=subject.features, matched=True, empty=True))


def alignment_positions(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = pair
        found = explain_checked(similarity, x, y).weights
        front = explain_checked(similarity, to_front(x), to_front(y)).weights
        wanted = torch.zeros_like(front)
        for i in range(len(front)):
            at_x, at_y = (side.mask[i].nonzero().flatten() for side in (x, y))
            wanted[i][at_x[:, None], at_y] = front[i, : len(at_x), : len(at_y)]
        check_same(found, wanted, 1e-8, "weight", "with packed steps, moved to their places")

    subject.for_all(
        holds, pair=sequence_pairs(features=subject.features, matched=True, kinds=DENSE)
    )


def alignment_alone(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = pair
        found = explain_checked(similarity, x, y).weights
        for i in range(len(found)):
            a, b = x.values[i : i + 1, x.mask[i]], y.values[i : i + 1, y.mask[i]]
            one = similarity.explain(a, b).weights[0]
            here = found[i][x.mask[i]][:, y.mask[i]]
            check_same(here, one, 1e-8, f"pair {i}, weight", "for the pair alone")

    subject.for_all(
        holds, pair=sequence_pairs(features=subject.features, matched=True, kinds=DENSE)
    )


def alignment_diagonal(subject: Subject) -> None:
    similarity = subject.evaluated()

    def holds(x: Sequences) -> None:
        weights = explain_checked(similarity, x, x).weights[0].detach()
        if not float(weights.sum()) > 0:
            raise Broken("some weight must be positive, got zero everywhere")
        for name, rows in (("row", weights), ("column", weights.T)):
            ahead = rows - rows.diagonal()[:, None]
            if float(ahead.max()) > 1e-8 * (1 + float(weights.max())):
                k, other = divmod(int(ahead.argmax()), ahead.shape[1])
                raise Broken(
                    f"in {name} {k} the weight of the step itself must be the largest, got "
                    f"{float(rows[k, k]):.6g}, and {float(rows[k, other]):.6g} for step {other}"
                )

    # Steps differ most when they are orthogonal.
    steps = torch.eye(subject.features, dtype=torch.float64)
    subject.for_each(
        holds,
        (
            {"x": Sequences.from_tensor(steps[None, :n])}
            for n in range(1, min(subject.features, 6) + 1)
        ),
    )


CHECKS = (
    Check(
        "alignment_weights",
        "weights are finite, not negative, and zero on padding; explain gives the scores of a call",
        alignment_weights,
        "`align`: use clamp(min=0) if a weight is a cosine; a softmax over no steps is NaN",
    ),
    Check(
        "alignment_positions",
        "weights stand at the caller's positions, wherever the padding is",
        alignment_positions,
        "`align` returns (n, t, l) for the packed steps, those of x along the second axis; "
        "`clipseq.Similarity.explain` moves the weights to the caller's positions",
    ),
    Check(
        "alignment_alone",
        "the weights of a pair do not depend on padding or on the other pairs",
        alignment_alone,
        "`align`, like `score`: padded steps in a softmax, a maximum or a mean; sums over n",
    ),
    Check(
        "alignment_diagonal",
        "for distinct steps against themselves, no weight exceeds the one on the diagonal",
        alignment_diagonal,
        "`align`: swapped axes, an index that is off by one, or weights that do not follow the "
        "match; a similarity that does not distinguish steps spreads its weight evenly",
    ),
)
