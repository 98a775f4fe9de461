"""Checks of a score: its shape, its range, and the meaning of 1."""

import torch
from torch import Tensor

from clipseq.sequences import Sequences
from clipseq.similarity import Similarity
from clipseq.testing.conformance import Broken, Check, Subject, check_finite, check_same
from clipseq.testing.outcome import outcome
from clipseq.testing.strategies import WILD, dense, sequence_pairs

HUGE_GRADIENT = 1e6
"""Largest gradient to accept for inputs near 1.

Dividing a zero vector by an eps of 1e-12 gives a gradient of 1e12, which is finite.
"""


def shape_and_dtype(subject: Subject) -> None:
    similarity = subject.make().eval()
    outputs = {
        torch.float64: torch.float64,
        torch.float32: torch.float32,
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
    }

    def holds(pair: tuple[Sequences, Sequences]) -> None:
        x, y = pair
        for dtype, wanted in outputs.items():
            scores = similarity(x.values.to(dtype), y.values.to(dtype), x.mask, y.mask)
            if scores.shape != (len(x.values), len(y.values)):
                raise Broken(
                    f"the scores of {dtype} inputs must have the shape "
                    f"{(len(x.values), len(y.values))}, got {tuple(scores.shape)}"
                )
            if scores.dtype != wanted:
                raise Broken(f"the scores of {dtype} inputs must be {wanted}, got {scores.dtype}")

    subject.for_all(holds, pair=sequence_pairs(features=subject.features))


def raw_scores(similarity: Similarity, x: Sequences, y: Sequences) -> Tensor:
    """Return the scores before `forward` clamps them to [-1, 1]."""
    seen: list[Tensor] = []
    score_all = similarity.score_all

    def listen(*args: object) -> Tensor:
        seen.append(score_all(*args))  # type: ignore[arg-type]
        return seen[-1]

    similarity.score_all = listen  # type: ignore[method-assign, assignment]
    try:
        scores = similarity(x.values, y.values, x.mask, y.mask)
    finally:
        del similarity.score_all
    return seen[0].detach() if seen else scores.detach()


def score_range(subject: Subject) -> None:
    similarity = subject.trained(torch.float32)

    def holds(pair: tuple[Sequences, Sequences]) -> None:
        x, y = pair
        scores = raw_scores(similarity, x, y)
        check_finite(scores, "score")
        check_finite(scores, "score", 1 + 1e-4)
        check_finite(similarity(x.values, y.values, x.mask, y.mask), "score", 1.0)

    subject.for_all(
        holds,
        pair=sequence_pairs(
            features=subject.features,
            kinds=WILD,
            empty=True,
            scales=(1.0, 1e-3, 1e6),
            dtype=torch.float32,
        ),
    )


def _repeated(step: Tensor, times: int) -> Sequences:
    return Sequences.from_tensor(step.expand(1, times, -1).contiguous())


def identical_sequences(subject: Subject) -> None:
    similarity = subject.evaluated()

    def holds(step: Tensor, x_times: int, y_times: int) -> None:
        x, y = _repeated(step, x_times), _repeated(step, y_times)
        scores = raw_scores(similarity, x, y)
        where = f"for any repeated step, here {x_times} times against {y_times} times"
        check_same(scores, torch.ones_like(scores), 1e-6, "score", where)

    step = dense(subject.features)
    times = ((1, 1), (1, 2), (3, 3), (2, 5), (20, 20), (7, 40))
    subject.for_each(
        holds, ({"step": step, "x_times": t, "y_times": length} for t, length in times)
    )


def opposite_sequences(subject: Subject) -> None:
    similarity = subject.evaluated()

    def holds(x: Sequences) -> None:
        scores = similarity(x.values, x.values, x.mask, x.mask)
        against = similarity(x.values, -x.values, x.mask, x.mask)
        itself, negative = scores.item(), against.item()
        if not itself > negative + 1e-6:
            raise Broken(
                "the score of a sequence with its negative must be below its score with itself, "
                f"{itself:.6g}, got {negative:.6g}"
            )

    subject.for_each(
        holds,
        (
            {"x": Sequences.from_tensor(dense(1, t, subject.features, seed=t))}
            for t in (1, 2, 3, 5, 20)
        ),
    )


def zero_vectors(subject: Subject) -> None:
    similarity = subject.trained(torch.float32)

    def holds(pair: tuple[Sequences, Sequences]) -> None:
        found = outcome(similarity, *pair)
        check_finite(found.scores, "score", 1.0)
        check_finite(found.x, "the gradient of x", HUGE_GRADIENT)
        check_finite(found.y, "the gradient of y", HUGE_GRADIENT)
        for name, gradient in found.parameters.items():
            check_finite(gradient, f"the gradient of the parameter {name}", HUGE_GRADIENT)

    subject.for_all(
        holds,
        pair=sequence_pairs(
            features=subject.features, kinds=("zero", "basis", "dense"), dtype=torch.float32
        ),
    )


def magnitudes(subject: Subject) -> None:
    similarity = subject.evaluated(torch.float32)
    direction = dense(subject.features, dtype=torch.float32)

    def holds(scale: float) -> None:
        for times in (1, 5):
            x = _repeated(direction * scale, times)
            found = outcome(similarity, x, _repeated(direction, 2))
            check_same(
                found.scores, torch.ones(1, 1), 1e-4, "score", f"for steps {scale:g} times as big"
            )
            check_finite(found.x, "the gradient of x")
            check_finite(found.y, "the gradient of y")
            scores = similarity(x.values, x.values)
            check_same(scores, torch.ones(1, 1), 1e-4, "score", f"for steps of size {scale:g}")

    scales = (1e3, 1e-3, 1e5, 1e-5, 1e12, 1e-12, 1e20, 1e-20)
    subject.for_each(holds, ({"scale": scale} for scale in scales))


CHECKS = (
    Check(
        "shape_and_dtype",
        "(B, T, D) and (C, L, D) give (B, C); float64 gives float64, any other dtype float32",
        shape_and_dtype,
        "the result of `score`: one number per pair, with both axes kept when B or C is 1, in the "
        "dtype of its inputs; convert parameters to that dtype",
    ),
    Check(
        "range",
        "scores are finite and lie in [-1, 1] before they are clamped, whatever the values are",
        score_range,
        "`score`: a mean of cosines stays in the range, a sum or an unnormalised product does not; "
        "a division by a norm or a count that may be zero gives NaN",
    ),
    Check(
        "identical_sequences",
        "a repeated step scores 1 with itself, however often either side repeats it",
        identical_sequences,
        "the denominator of the mean, which counts real steps, not T and not windows; a normaliser "
        "that ignores the lengths",
    ),
    Check(
        "opposite_sequences",
        "a sequence scores higher with itself than with its negative",
        opposite_sequences,
        "a square, an absolute value or a lost sign in `score`",
    ),
    Check(
        "zero_vectors",
        "zero vectors give finite scores, and gradients of at most 1e6",
        zero_vectors,
        "divisions by a norm and square roots: the gradient of `clipseq.unit` at zero is zero, "
        "that of torch.nn.functional.normalize is 1/eps",
    ),
    Check(
        "magnitudes",
        "steps of any size from 1e-20 to 1e20 keep their direction, without overflow or underflow",
        magnitudes,
        "squares of raw values (use `clipseq.unit` instead), casts to half precision, an eps that "
        "is larger than the values",
    ),
)
