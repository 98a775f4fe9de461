"""Checks that lower precision and torch.compile change the numbers by rounding only."""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import config

from clipseq.sequences import Sequences
from clipseq.testing.checks.batches import PairOfBatches
from clipseq.testing.conformance import Broken, Check, Subject, check_same
from clipseq.testing.outcome import check_agreement, outcome
from clipseq.testing.strategies import DENSE, TAME, dense, sequence_pairs


def float32(subject: Subject) -> None:
    double = subject.trained()
    single = subject.trained()
    single.load_state_dict(double.state_dict())
    single.float()

    def compare(pair: PairOfBatches, gradients: bool) -> None:
        x, y = (Sequences(side.values.float(), side.mask) for side in pair)
        found = outcome(single, x, y, gradients=gradients)
        x, y = (Sequences(side.values.double(), side.mask) for side in (x, y))
        wanted = outcome(double, x, y, gradients=gradients)
        where = "in float64"
        check_same(found.scores, wanted.scores, 1e-4, "score", where)
        if gradients:
            check_same(found.x, wanted.x, 1e-3, "the gradient of x", where)
            check_same(found.y, wanted.y, 1e-3, "the gradient of y", where)

    def scores(pair: PairOfBatches) -> None:
        compare(pair, False)

    def gradients(pair: PairOfBatches) -> None:
        compare(pair, True)

    for holds, kinds in ((scores, TAME), (gradients, DENSE)):
        pairs = sequence_pairs(
            features=subject.features, steps=(1, 6), kinds=kinds, scales=(1.0, 1e2)
        )
        subject.for_all(holds, pair=pairs)
    long = [Sequences.from_tensor(dense(2, 150, subject.features, seed=s)) for s in (1, 2)]
    subject.for_each(scores, [{"pair": tuple(long)}])


def autocast(subject: Subject) -> None:
    similarity = subject.trained(torch.float32)

    def holds(pair: PairOfBatches) -> None:
        plain = outcome(similarity, *pair)
        cast = outcome(similarity, *pair, autocast=True)
        check_agreement(cast, plain, "without autocast", gradients=True, tolerance=1e-5)
        if cast.scores.dtype != torch.float32:
            raise Broken(
                f"the scores under autocast must be torch.float32, got {cast.scores.dtype}"
            )
        x, y = pair
        half = [side.values.bfloat16() for side in pair]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = similarity(*half, x.mask, y.mask)
        wanted = similarity(half[0].float(), half[1].float(), x.mask, y.mask)
        check_same(
            found, wanted, 1e-5, "for bfloat16 inputs, score", "for the same inputs in float32"
        )

    subject.for_all(
        holds,
        pair=sequence_pairs(features=subject.features, kinds=DENSE, dtype=torch.float32),
    )


def compiled(subject: Subject) -> None:
    similarity = subject.trained(torch.float32)

    def holds(x: Sequences, y: Sequences) -> None:
        torch.compiler.reset()
        # The compiler cannot trace checks of signatures at run time.
        unchecked = config.jaxtyping_disable
        config.update("jaxtyping_disable", True)
        try:
            whole = torch.compile(similarity.__call__, fullgraph=True, backend="aot_eager")
            with warnings.catch_warnings():
                # The compiler itself calls deprecated functions.
                warnings.simplefilter("ignore")
                found = outcome(_Call(whole), x, y)
        finally:
            config.update("jaxtyping_disable", unchecked)
            torch.compiler.reset()
        wanted = outcome(similarity, x, y)
        where = "without torch.compile"
        check_same(found.scores, wanted.scores, 1e-5, "score", where)
        check_same(found.x, wanted.x, 1e-4, "the gradient of x", where)
        check_same(found.y, wanted.y, 1e-4, "the gradient of y", where)

    # In a graph no length is known, so a plugin sees steps that are padding in every row.
    x_mask = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    y_mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
    x, y = (
        Sequences.from_tensor(dense(*mask.shape, subject.features, dtype=torch.float32), mask)
        for mask in (x_mask, y_mask)
    )
    subject.for_each(holds, [{"x": x, "y": y}])


class _Call(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


CHECKS = (
    Check(
        "float32",
        "float32 gives the scores of float64 within 1e-4, and its gradients within 1e-3",
        float32,
        "differences of large numbers, long sums, casts to half precision, constants in float32",
    ),
    Check(
        "autocast",
        "under bfloat16 autocast, and for bfloat16 inputs, scores are computed in float32",
        autocast,
        "casts of your own, and torch.autocast inside `score`",
    ),
    Check(
        "compile",
        "torch.compile(fullgraph=True) works, and gives the same scores and gradients",
        compiled,
        "Python values that are read from tensors (.item(), .tolist(), if tensor:), and numpy: "
        "wrap such code as torch.library.custom_op; steps that are padding in every row",
    ),
)
