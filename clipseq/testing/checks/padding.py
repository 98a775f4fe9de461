"""Checks that padding changes neither scores nor gradients."""

import torch
from hypothesis import strategies as st

from clipseq.sequences import Sequences
from clipseq.testing.checks.batches import PairOfBatches, as_alone
from clipseq.testing.conformance import Check, Subject, check_finite, check_only, check_same
from clipseq.testing.outcome import (
    Outcome,
    check_agreement,
    outcome,
    pad_to,
    stack_batches,
    to_front,
)
from clipseq.testing.strategies import DENSE, TAME, sequence_pairs

JUNK = (float("nan"), float("inf"), float("-inf"), 1e30, 1.0)


def ragged_batches(subject: Subject) -> None:
    as_alone(subject, batch=(1, 3), steps=(1, 5))


def padding_content(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches, padding: float) -> None:
        clean = outcome(similarity, *pair)
        x, y = (
            Sequences(side.values.masked_fill(~side.mask[..., None], padding), side.mask)
            for side in pair
        )
        where = "with zeros in padded steps"
        check_agreement(outcome(similarity, x, y), clean, where, gradients=True)

    subject.for_all(
        holds,
        pair=sequence_pairs(features=subject.features, empty=True, kinds=DENSE),
        padding=st.sampled_from(JUNK),
    )


def padding_amount(subject: Subject) -> None:
    similarity = subject.trained()

    def compare(pair: PairOfBatches, extra: int, gradients: bool) -> None:
        x, y = pair
        t, length = x.values.shape[1], y.values.shape[1]
        x_longer, y_longer = pad_to(x, t + extra), pad_to(y, length + 2 * extra)
        found = outcome(similarity, x_longer, y_longer, gradients=gradients)
        cut = Outcome(found.scores, found.x[:, :t], found.y[:, :length], found.parameters)
        wanted = outcome(similarity, x, y, gradients=gradients)
        where = f"without {extra} and {2 * extra} more padded steps"
        check_agreement(cut, wanted, where, gradients=gradients)

    def scores(pair: PairOfBatches, extra: int) -> None:
        compare(pair, extra, False)

    def gradients(pair: PairOfBatches, extra: int) -> None:
        compare(pair, extra, True)

    for holds, kinds in ((scores, TAME), (gradients, DENSE)):
        pairs = sequence_pairs(features=subject.features, kinds=kinds)
        subject.for_all(holds, pair=pairs, extra=st.integers(1, 4))


def mask_patterns(subject: Subject) -> None:
    similarity = subject.trained()

    def compare(pair: PairOfBatches, gradients: bool) -> None:
        x, y = pair
        front = outcome(similarity, to_front(x), to_front(y), gradients=gradients)
        found = outcome(similarity, x, y, gradients=gradients)
        moved = Outcome(
            found.scores,
            to_front(Sequences(found.x, x.mask)).values,
            to_front(Sequences(found.y, y.mask)).values,
            found.parameters,
        )
        check_agreement(moved, front, "with the padding at the end", gradients=gradients)

    def scores(pair: PairOfBatches) -> None:
        compare(pair, False)

    def gradients(pair: PairOfBatches) -> None:
        compare(pair, True)

    for holds, kinds in ((scores, TAME), (gradients, DENSE)):
        subject.for_all(holds, pair=sequence_pairs(features=subject.features, kinds=kinds))


def padding_gradient(subject: Subject) -> None:
    similarity = subject.trained(torch.float32)

    def holds(pair: PairOfBatches, padding: float) -> None:
        x, y = (
            Sequences(side.values.masked_fill(~side.mask[..., None], padding), side.mask)
            for side in pair
        )
        found = outcome(similarity, x, y)
        for name, gradient, side in (("x", found.x, x), ("y", found.y, y)):
            check_only(gradient, ~side.mask[..., None], 0.0, f"the gradient of {name}")

    subject.for_all(
        holds,
        pair=sequence_pairs(features=subject.features, empty=True, dtype=torch.float32),
        padding=st.sampled_from(JUNK),
    )


def empty_sequences(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        nothing_x, nothing_y = (
            Sequences(torch.ones_like(side.values[:1]), torch.zeros_like(side.mask[:1]))
            for side in pair
        )
        x, y = stack_batches(pair[0], nothing_x), stack_batches(pair[1], nothing_y)
        found = outcome(similarity, x, y)
        empty = ~(x.mask.any(1)[:, None] & y.mask.any(1))
        check_only(found.scores, empty, -1.0, "the score of a pair with an empty sequence, score")
        for name, gradient, side in (("x", found.x, x), ("y", found.y, y)):
            none = ~side.mask.any(1)[:, None, None]
            check_only(gradient, none, 0.0, f"the gradient of an empty sequence, {name}")
        wanted = outcome(similarity, *pair)
        where = "without empty sequences in the batch"
        check_same(found.scores[:-1, :-1], wanted.scores, 1e-8, "score", where)
        for name, gradient in found.parameters.items():
            check_finite(gradient, f"the gradient of the parameter {name}")

    subject.for_all(
        holds,
        pair=sequence_pairs(features=subject.features, empty=True),
    )


_BASE = (
    "`clipseq.Similarity.forward` ensures this, unless you write a `forward` of your own or keep "
    "a raw input from before `prepare_x`"
)

CHECKS = (
    Check(
        "ragged_batches",
        "a short sequence in a batch of longer ones has the scores and gradients that it has alone",
        ragged_batches,
        "padded steps: exclude them with masked_fill(-inf) before a maximum or a softmax (a "
        "product with zero is not enough, as scores may be negative), leave them out of means, "
        "read recursions at the end of each sequence, and add no bias to zeros",
    ),
    Check(
        "padding_content",
        "the content of padded steps, NaN and inf included, changes neither scores nor gradients",
        padding_content,
        _BASE,
    ),
    Check(
        "padding_amount",
        "the amount of padding changes neither scores nor gradients",
        padding_amount,
        _BASE,
    ),
    Check(
        "mask_patterns",
        "the place of padding, be it in the middle, changes neither scores nor gradients",
        mask_patterns,
        _BASE,
    ),
    Check(
        "padding_gradient",
        "the gradient of a padded step is exactly zero",
        padding_gradient,
        _BASE,
    ),
    Check(
        "empty_sequences",
        "a sequence without a real step scores -1 with every other, gets zero gradient, and "
        "changes no other score",
        empty_sequences,
        _BASE + "; the gradient of a parameter, which such a sequence may make NaN",
    ),
)
