"""Checks that gradients agree with finite differences, even at zeros, ties and equal steps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from clipseq.sequences import Sequences
from clipseq.testing.checks.scores import HUGE_GRADIENT
from clipseq.testing.conformance import Broken, Check, Subject, check_finite, check_same, tiles_of
from clipseq.testing.outcome import outcome
from clipseq.testing.strategies import dense

_FEW = 150
"""Largest number of inputs for which the whole Jacobian is compared, not a random projection."""


def check_gradient(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise `Broken` unless the gradient is that of finite differences, in float64."""
    variables = [value.requires_grad_() for value in inputs]
    fast = sum(value.numel() for value in variables) > _FEW
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            gradcheck(function, tuple(variables), atol=1e-5, rtol=1e-3, fast_mode=fast)
        except GradcheckError as error:
            raise Broken(" ".join(str(error).split())[:500]) from error


def finite_differences(subject: Subject) -> None:
    similarity = subject.trained()
    parameters = [p for p in similarity.parameters() if p.requires_grad]

    def holds(x: Sequences, y: Sequences, tile_elements: int | None) -> None:
        def scores(x_values: Tensor, y_values: Tensor, *_: Tensor) -> Tensor:
            return similarity(x_values, y_values, x.mask, y.mask)

        values = (x.values.clone(), y.values.clone(), *parameters)
        if tile_elements is None:
            check_gradient(scores, values)
        else:
            with tiles_of(similarity, tile_elements):
                check_gradient(scores, values)

    d = subject.features

    def side(mask: list[list[int]], seed: int) -> Sequences:
        real = torch.tensor(mask, dtype=torch.bool)
        return Sequences.from_tensor(dense(*real.shape, d, seed=seed), real)

    one, two = side([[1]], 1), side([[1, 1]], 2)
    ragged_x, ragged_y = side([[1, 1, 1], [1, 0, 1]], 3), side([[1, 1], [0, 1]], 4)
    opposed = Sequences(-ragged_y.values, ragged_y.mask)
    subject.for_each(
        holds,
        (
            {"x": x, "y": y, "tile_elements": tile}
            for x, y, tile in (
                (one, one, None),
                (one, two, None),
                (two, side([[1, 1, 1]], 5), None),
                (ragged_x, ragged_y, None),
                (ragged_x, opposed, None),
                (ragged_x, ragged_y, 1),
            )
        ),
    )


def _but_zeros(sequences: Sequences) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the nonzero steps, and a function that puts replacements for them among the zeros."""
    places = sequences.values.abs().amax(-1) > 0
    # At a zero step a cosine has no limit, so finite differences exist for the other steps only.
    return sequences.values[places], lambda steps: sequences.values.index_put(
        places.nonzero(as_tuple=True), steps
    )


def at_zero_vectors(subject: Subject) -> None:
    similarity = subject.trained()

    def holds(x: Sequences, y: Sequences) -> None:
        found = outcome(similarity, x, y)
        check_finite(found.x, "the gradient of x", HUGE_GRADIENT)
        check_finite(found.y, "the gradient of y", HUGE_GRADIENT)
        (x_steps, x_whole), (y_steps, y_whole) = _but_zeros(x), _but_zeros(y)

        def scores(x_part: Tensor, y_part: Tensor) -> Tensor:
            return similarity(x_whole(x_part), y_whole(y_part), x.mask, y.mask)

        check_gradient(scores, (x_steps, y_steps))

    def side(pattern: list[list[int]], seed: int) -> Sequences:
        # 1: a step, 0: a zero step, -1: padding.
        kinds = torch.tensor(pattern)
        values = dense(*kinds.shape, subject.features, seed=seed)
        return Sequences.from_tensor(values * (kinds == 1)[..., None], kinds >= 0)

    one, ragged = side([[1]], 1), side([[1, 0, 1], [0, 1, -1], [0, 0, 0]], 2)
    subject.for_each(
        holds,
        (
            {"x": x, "y": y}
            for x, y in (
                (one, side([[1], [0]], 3)),
                (side([[1, 0]], 4), side([[0, 1]], 5)),
                (ragged, one),
                (ragged, side([[0, 1], [1, -1], [0, 0]], 6)),
            )
        ),
    )


def at_identical_sequences(subject: Subject) -> None:
    similarity = subject.trained()
    untouched = subject.evaluated()

    def holds(x: Sequences) -> None:
        for model in (untouched, similarity):

            def scores(
                x_values: Tensor, y_values: Tensor, model: torch.nn.Module = model
            ) -> Tensor:
                return model(x_values, y_values, x.mask, x.mask)

            check_gradient(scores, (x.values.clone(), x.values.clone()))

    ragged = torch.tensor([[True, True, True], [True, False, False]])
    subject.for_each(
        holds,
        (
            {"x": Sequences.from_tensor(dense(1, 1, subject.features))},
            {"x": Sequences.from_tensor(dense(1, 3, subject.features))},
            {"x": Sequences.from_tensor(dense(2, 3, subject.features), ragged)},
        ),
    )


def at_repeated_steps(subject: Subject) -> None:
    similarity = subject.evaluated()

    def holds(x: str, y: str) -> None:
        steps = dense(3, subject.features, seed=7)

        def scores(steps: Tensor) -> Tensor:
            # Equal steps are moved together, so they stay equal, and the score is smooth.
            sides = (steps[["abc".index(letter) for letter in side]][None] for side in (x, y))
            return similarity(*sides)

        check_gradient(scores, (steps,))

    subject.for_each(
        holds,
        (
            {"x": x, "y": y}
            for x, y in (("a", "bb"), ("aa", "b"), ("aa", "bb"), ("aab", "cca"), ("aaaa", "bcbc"))
        ),
    )


def frozen_side(subject: Subject) -> None:
    similarity = subject.trained()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    x = Sequences.from_tensor(dense(2, 3, subject.features, seed=1), mask)
    y = Sequences.from_tensor(dense(2, 3, subject.features, seed=2), mask.flip(0))

    def holds(x: Sequences, y: Sequences, frozen: str) -> None:
        wanted = outcome(similarity, x, y)
        for elements in (2**20, 9):
            with tiles_of(similarity, elements):
                xs, ys = x.values.clone(), y.values.clone()
                moving = ys if frozen == "x" else xs
                moving.requires_grad_()
                scores = similarity(xs, ys, x.mask, y.mask)
                (gradient,) = torch.autograd.grad(scores.sum(), moving)
                both_x, both_y = x.values.clone(), y.values.clone()
                both = both_y if frozen == "x" else both_x
                both_x.requires_grad_()
                both_y.requires_grad_()
                again = similarity(both_x, both_y, x.mask, y.mask)
                (wanted_gradient,) = torch.autograd.grad(again.sum(), both)
            check_same(scores, wanted.scores, 1e-8, "score", "with gradients to both sides")
            check_same(gradient, wanted_gradient, 1e-8, "gradient", "with gradients to both sides")

    subject.for_each(holds, ({"x": x, "y": y, "frozen": side} for side in "xy"))


def training_steps(subject: Subject) -> None:
    similarity = subject.make().train()
    inputs = [dense(2, 3, subject.features, seed=s, dtype=torch.float32) for s in (1, 2)]
    subject.example = {"x": inputs[0], "y": inputs[1]}
    for step in range(3):
        similarity.zero_grad()
        values = [value.clone().requires_grad_() for value in inputs]
        scores = similarity(*values)
        try:
            scores.sum().backward()
        except RuntimeError as error:
            what = str(error).split(". ")[0]
            raise Broken(
                f"the backward pass of step {step} must work, but raised: {what}"
            ) from error
        with torch.no_grad():
            for parameter in similarity.parameters():
                if parameter.grad is not None:
                    check_finite(parameter.grad, "the gradient of a parameter")
                    parameter.sub_(0.01 * parameter.grad)
        for name, buffer in similarity.named_buffers():
            if buffer.requires_grad:
                raise Broken(
                    f"the buffer {name!r} must not require a gradient after step {step}; detach "
                    "what is stored in it"
                )


_SMOOTH = (
    "detach(), .data, torch.no_grad() or argmax on the path of a gradient; a backward of your own"
)

CHECKS = (
    Check(
        "finite_differences",
        "gradients, those of parameters included, agree with finite differences in float64",
        finite_differences,
        _SMOOTH + "; a score that `forward` has to clamp",
    ),
    Check(
        "gradient_at_zero_vectors",
        "with zero vectors in the batch, gradients are finite, and right for all other steps",
        at_zero_vectors,
        "norms and square roots: use `clipseq.unit`, which is safe at zero; torch.where does not "
        "stop the NaN of the branch that is not taken",
    ),
    Check(
        "gradient_at_identical_sequences",
        "gradients are right where the two sequences are equal",
        at_identical_sequences,
        "the square root of a distance that is zero, acos at 1, a clamp at 1",
    ),
    Check(
        "gradient_at_repeated_steps",
        "where steps repeat and maxima tie, no part of a gradient is lost or counted twice",
        at_repeated_steps,
        "a comparison with the maximum (== best) instead of amax or max",
    ),
    Check(
        "frozen_side",
        "the gradient of one side is unchanged when the other side needs none",
        frozen_side,
        "a backward of your own that assumes that both inputs need a gradient",
    ),
    Check(
        "training_steps",
        "several training steps in a row work, because nothing of the graph is kept",
        training_steps,
        "a buffer or an attribute that `score` or `prepare_x` updates without detach()",
    ),
)
