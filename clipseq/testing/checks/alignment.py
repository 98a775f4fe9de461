"""What `explain` says of matched pairs."""

import torch

from clipseq.sequences import Alignment, Sequences
from clipseq.similarity import Similarity
from clipseq.testing.checks.batches import PairOfBatches
from clipseq.testing.conformance import Broken, Check, Subject, finite, only, same
from clipseq.testing.outcome import to_front
from clipseq.testing.strategies import DENSE, sequence_pairs


def explained(similarity: Similarity, x: Sequences, y: Sequences) -> Alignment:
    """`explain`, its shapes checked."""
    found = similarity.explain(x.values, y.values, x.mask, y.mask)
    shape = (*x.mask.shape, y.mask.shape[1])
    if found.weights.shape != shape or found.mask.shape != shape or found.score.shape != shape[:1]:
        raise Broken(
            f"score, weights and mask have the shapes {tuple(found.score.shape)}, "
            f"{tuple(found.weights.shape)} and {tuple(found.mask.shape)}, not {shape[:1]}, "
            f"{shape} and {shape}"
        )
    return found


def alignment_weights(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = pair
        found = explained(similarity, x, y)
        finite(found.weights, "weight")
        negative = found.weights < 0
        if bool(negative.any()):
            index = tuple(int(k) for k in negative.nonzero()[0])
            raise Broken(f"weight{list(index)} is {float(found.weights[index]):.6g}")
        real = x.mask[:, :, None] & y.mask[:, None, :]
        if not torch.equal(found.mask, real):
            raise Broken("mask is not True exactly where both steps are real")
        only(found.weights, ~real, 0.0, "a weight on padding, ")
        scores = similarity(x.values, y.values, x.mask, y.mask).diagonal()
        same(found.score, scores, 1e-8, "the score of explain", "from a call")

    subject.for_all(holds, pair=sequence_pairs(features=subject.features, matched=True, empty=True))


def alignment_positions(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = pair
        found = explained(similarity, x, y).weights
        front = explained(similarity, to_front(x), to_front(y)).weights
        wanted = torch.zeros_like(front)
        for i in range(len(front)):
            at_x, at_y = (side.mask[i].nonzero().flatten() for side in (x, y))
            wanted[i][at_x[:, None], at_y] = front[i, : len(at_x), : len(at_y)]
        same(found, wanted, 1e-8, "weight", "from the packed steps, put back in their places")

    subject.for_all(
        holds, pair=sequence_pairs(features=subject.features, matched=True, kinds=DENSE)
    )


def alignment_alone(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = pair
        found = explained(similarity, x, y).weights
        for i in range(len(found)):
            a, b = x.values[i : i + 1, x.mask[i]], y.values[i : i + 1, y.mask[i]]
            one = similarity.explain(a, b).weights[0]
            here = found[i][x.mask[i]][:, y.mask[i]]
            same(here, one, 1e-8, f"pair {i}, weight", "for the pair alone")

    subject.for_all(
        holds, pair=sequence_pairs(features=subject.features, matched=True, kinds=DENSE)
    )


def alignment_diagonal(subject: Subject) -> None:
    similarity = subject.evaluated()

    def holds(x: Sequences) -> None:
        weights = explained(similarity, x, x).weights[0].detach()
        if not float(weights.sum()) > 0:
            raise Broken("all weights are zero")
        for name, rows in (("row", weights), ("column", weights.T)):
            ahead = rows - rows.diagonal()[:, None]
            if float(ahead.max()) > 1e-8 * (1 + float(weights.max())):
                k, other = divmod(int(ahead.argmax()), ahead.shape[1])
                raise Broken(
                    f"in {name} {k} the step {other} has the weight {float(rows[k, other]):.6g}, "
                    f"and the step itself {float(rows[k, k]):.6g}"
                )

    # As different as steps can be: orthogonal ones.
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
        "weights are finite, never negative, and zero on padding; explain scores as a call does",
        alignment_weights,
        "`align`: clamp(min=0) where a weight is a cosine; a softmax over nothing is NaN",
    ),
    Check(
        "alignment_positions",
        "weights are at the caller's positions, wherever the padding is",
        alignment_positions,
        "`align` returns (n, t, l) for the packed steps, x's along the second axis; "
        "`clipseq.Similarity.explain` puts them back",
    ),
    Check(
        "alignment_alone",
        "the weights of a pair do not depend on padding or on the other pairs",
        alignment_alone,
        "in `align`, as in `score`: padded steps in a softmax, a maximum or a mean; sums over n",
    ),
    Check(
        "alignment_diagonal",
        "for distinct steps against themselves, nothing outweighs the diagonal",
        alignment_diagonal,
        "`align`: an axis swapped, a step too far, or weights that do not follow the match; a "
        "similarity that cannot tell steps apart spreads evenly",
    ),
)
