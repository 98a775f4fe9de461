"""Checks that the score of a pair depends on that pair alone."""

from typing import Literal

import torch
from hypothesis import strategies as st

from clipseq.sequences import Sequences
from clipseq.testing.conformance import (
    Check,
    Subject,
    check_finite,
    check_only,
    check_same,
    tiles_of,
)
from clipseq.testing.outcome import alone, check_agreement, outcome, rows, stack_batches
from clipseq.testing.strategies import DENSE, TAME, Size, dense, sequence_pairs, sequences

PairOfBatches = tuple[Sequences, Sequences]


def independence(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches, others: PairOfBatches) -> None:
        (x, y), (x_others, y_others) = pair, others
        wanted = similarity(x.values, y.values, x.mask, y.mask)
        x_all, y_all = stack_batches(x_others, x), stack_batches(y_others, y)
        xs, ys = (side.values.clone().requires_grad_() for side in (x_all, y_all))
        scores = similarity(xs, ys, x_all.mask, y_all.mask)
        check_same(
            scores[-1:, -1:], wanted, 1e-8, "score", "without the other sequences in the batch"
        )
        for side, values in (("x", xs), ("y", ys)):
            (gradient,) = torch.autograd.grad(scores[-1, -1], values, retain_graph=True)
            elsewhere = torch.ones_like(gradient, dtype=torch.bool)
            elsewhere[-1] = False
            check_only(gradient, elsewhere, 0.0, f"the gradient of the last pair's score to {side}")

    one = sequence_pairs(batch=1, steps=(1, 4), features=subject.features)
    others = st.tuples(
        *(sequences(batch=(1, 2), steps=(1, 6), features=subject.features) for _ in "xy")
    )
    subject.for_all(holds, pair=one, others=others)


def permutation(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches, x_order: list[int], y_order: list[int]) -> None:
        x, y = pair
        x_at = torch.tensor([k for k in x_order if k < len(x.values)])
        y_at = torch.tensor([k for k in y_order if k < len(y.values)])
        scores = similarity(x.values, y.values, x.mask, y.mask)
        moved = similarity(x.values[x_at], y.values[y_at], x.mask[x_at], y.mask[y_at])
        check_same(moved, scores[x_at][:, y_at], 1e-8, "score", "before the batch was permuted")

    order = st.permutations(range(4))
    subject.for_all(
        holds,
        pair=sequence_pairs(batch=(1, 4), features=subject.features, empty=True),
        x_order=order,
        y_order=order,
    )


def duplicates(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = (stack_batches(side, side) for side in pair)
        scores = similarity(x.values, y.values, x.mask, y.mask)
        b, c = len(x.values) // 2, len(y.values) // 2
        check_same(scores[b:], scores[:b], 1e-8, "score", "for an equal x in another row")
        check_same(scores[:, c:], scores[:, :c], 1e-8, "score", "for an equal y in another column")

    subject.for_all(holds, pair=sequence_pairs(batch=(1, 2), features=subject.features))


def as_alone(
    subject: Subject,
    *,
    batch: Size = (1, 2),
    steps: Size = (1, 4),
    y_batch: Size | None = None,
    y_steps: Size | None = None,
    masks: Literal["any", "prefix"] = "any",
    examples: int | None = None,
) -> None:
    """Check that a batch has the scores and gradients of its pairs, each scored alone, unpadded."""
    similarity = subject.trained()

    def compare(pair: PairOfBatches, gradients: bool) -> None:
        x, y = pair
        found = outcome(similarity, x, y, gradients=gradients)
        check_finite(found.scores, "score", 1.0)
        wanted = alone(similarity, x, y, gradients=gradients)
        check_agreement(found, wanted, "for the pair alone", gradients=gradients)

    def scores(pair: PairOfBatches) -> None:
        compare(pair, False)

    def gradients(pair: PairOfBatches) -> None:
        compare(pair, True)

    # Where steps repeat, a maximum is reached more than once, and its gradient is not unique.
    for holds, kinds in ((scores, TAME), (gradients, DENSE)):
        pairs = sequence_pairs(
            batch=batch,
            steps=steps,
            y_batch=y_batch,
            y_steps=y_steps,
            masks=masks,
            features=subject.features,
            kinds=kinds,
        )
        subject.for_all(holds, pair=pairs, examples=examples)


def rectangles(subject: Subject) -> None:
    as_alone(subject, batch=(1, 2), y_batch=3, steps=(1, 3), y_steps=(4, 5), examples=10)
    as_alone(subject, batch=3, y_batch=(1, 2), steps=(4, 5), y_steps=(1, 3), examples=10)


def single_steps(subject: Subject) -> None:
    as_alone(subject, steps=1, y_steps=(1, 5), examples=10)
    as_alone(subject, steps=(1, 5), y_steps=1, examples=10)


def one_row_batches(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(pair: PairOfBatches) -> None:
        x, y = pair
        scores = similarity(x.values, y.values, x.mask, y.mask)
        where = "in the whole batch"
        for i in range(len(x.values)):
            one = rows(x, slice(i, i + 1))
            row = similarity(one.values, y.values, one.mask, y.mask)
            check_same(row, scores[i : i + 1], 1e-8, f"the row {i} alone, score", where)
        for j in range(len(y.values)):
            one = rows(y, slice(j, j + 1))
            column = similarity(x.values, one.values, x.mask, one.mask)
            check_same(column, scores[:, j : j + 1], 1e-8, f"the column {j} alone, score", where)

    subject.for_all(holds, pair=sequence_pairs(features=subject.features, empty=True))


def long_against_short(subject: Subject) -> None:
    as_alone(
        subject, batch=2, y_batch=1, steps=(60, 64), y_steps=(1, 2), masks="prefix", examples=6
    )
    as_alone(
        subject, batch=1, y_batch=2, steps=(1, 2), y_steps=(60, 64), masks="prefix", examples=6
    )
    similarity = subject.evaluated(torch.float32)

    def holds(t: int, length: int) -> None:
        step = dense(1, 1, subject.features, dtype=torch.float32)
        x, y = (Sequences.from_tensor(step.repeat(1, n, 1)) for n in (t, length))
        found = outcome(similarity, x, y)
        check_same(found.scores, torch.ones(1, 1), 1e-4, "score", "for one step repeated")
        check_finite(found.x, "the gradient of x")
        check_finite(found.y, "the gradient of y")

    subject.for_each(holds, ({"t": t, "length": n} for t, n in ((300, 1), (1, 300), (500, 3))))


def tile_size(subject: Subject) -> None:
    similarity = subject.trained()

    def compare(pair: PairOfBatches, elements: int, gradients: bool) -> None:
        x, y = pair
        whole = outcome(similarity, x, y, gradients=gradients)
        with tiles_of(similarity, elements):
            tiled = outcome(similarity, x, y, gradients=gradients)
            with torch.no_grad():
                scores = similarity(x.values, y.values, x.mask, y.mask)
        check_agreement(tiled, whole, "in one tile", gradients=gradients)
        check_same(scores, whole.scores, 1e-8, "without gradients, score", "in one tile")

    def scores(pair: PairOfBatches, elements: int) -> None:
        compare(pair, elements, False)

    def all_of_it(pair: PairOfBatches, elements: int) -> None:
        compare(pair, elements, True)

    # Three rows, five columns, 16 cells per pair: with tiles of two columns the last is narrower.
    x, y = (
        Sequences.from_tensor(dense(count, 4, subject.features, seed=count)) for count in (3, 5)
    )
    subject.for_each(all_of_it, ({"pair": (x, y), "elements": n} for n in (96, 80, 16, 1)))
    sizes = st.sampled_from((40, 100, 13, 1))
    for holds, kinds in ((scores, TAME), (all_of_it, DENSE)):
        pairs = sequence_pairs(batch=(1, 4), steps=(1, 4), features=subject.features, kinds=kinds)
        subject.for_all(holds, examples=12, pair=pairs, elements=sizes)


def large_batches(subject: Subject) -> None:
    similarity = subject.trained()

    def side(count: int, steps: int, seed: int) -> Sequences:
        lengths = torch.arange(count) * 7 % steps + 1
        mask = torch.arange(steps) < lengths[:, None]
        return Sequences.from_tensor(dense(count, steps, subject.features, seed=seed), mask)

    def holds(x: Sequences, y: Sequences) -> None:
        # More cells than a tile of the default size, so that a plugin's kernels split it too.
        with torch.no_grad():
            whole = similarity(x.values, y.values, x.mask, y.mask)
            for i in range(0, len(x.values), 16):
                for j in range(0, len(y.values), 11):
                    a, b = rows(x, slice(i, i + 16)), rows(y, slice(j, j + 11))
                    block = similarity(a.values, b.values, a.mask, b.mask)
                    corner = whole[i : i + 16, j : j + 11]
                    check_same(
                        corner, block, 1e-8, f"from ({i}, {j}) on, score", "in a small batch"
                    )

    subject.for_each(holds, [{"x": side(37, 40, 1), "y": side(29, 36, 2)}])


_ALONE = "axes that are squeezed or broadcast by accident, and means that count padded steps"

CHECKS = (
    Check(
        "one_row_batches",
        "a batch of one gives the row, or the column, of a larger batch",
        one_row_batches,
        "squeeze() without an axis, and broadcasting that changes its meaning when B or C is 1",
    ),
    Check(
        "single_steps",
        "sequences of a single step work, and each pair scores as it does alone",
        single_steps,
        _ALONE,
    ),
    Check(
        "rectangles",
        "B and C, and T and L, may differ, and each pair scores as it does alone",
        rectangles,
        _ALONE + "; x and y mixed up",
    ),
    Check(
        "long_against_short",
        "lengths may differ widely, and each pair scores as it does alone",
        long_against_short,
        _ALONE + "; sums over steps whose rounding grows with the length",
    ),
    Check(
        "independence",
        "S[i, j] depends on x[i] and y[j] only",
        independence,
        "anything computed across the batch axis: means, norms, maxima, a softmax over all y, "
        "batch normalisation",
    ),
    Check(
        "permutation",
        "permuting a batch permutes the rows or columns of its scores",
        permutation,
        "anything that depends on a row's place in the batch",
    ),
    Check(
        "duplicates",
        "equal sequences in one batch have equal scores",
        duplicates,
        "anything that depends on a row's place in the batch, or on competition within the batch",
    ),
    Check(
        "tile_size",
        "neither the size of a tile nor computing gradients changes scores beyond rounding",
        tile_size,
        "`score` gets a tile of the batch: compute what needs the whole sequence in `prepare_x`; "
        "in a `score_all` of your own, check the last tile of each row and column",
    ),
    Check(
        "large_batches",
        "a batch larger than a tile scores as its blocks do",
        large_batches,
        "the edges of tiles in a `score_all` of your own",
    ),
)
