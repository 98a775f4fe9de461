"""Scores and gradients together, of a batch at once and of its pairs one by one."""

import attrs
import torch
from torch import Tensor, nn

from clipseq.sequences import Sequences
from clipseq.similarity import Similarity
from clipseq.testing.conformance import same


@attrs.frozen(eq=False)
class Outcome:
    """Scores (B, C), and the gradients of one weighted sum of them."""

    scores: Tensor
    x: Tensor
    y: Tensor
    parameters: dict[str, Tensor]


def outcome(
    similarity: nn.Module,
    x: Sequences,
    y: Sequences,
    weights: Tensor | None = None,
    *,
    gradients: bool = True,
    autocast: bool = False,
) -> Outcome:
    """What a batch gives.

    Args:
        weights: (B, C) of the sum; None: numbers without pattern.
        gradients: False leaves them zero, and saves their time.
        autocast: score under bfloat16 autocast.
    """
    similarity.zero_grad()
    xs, ys = (side.values.detach().clone().requires_grad_() for side in (x, y))
    # Backward stays outside, as torch wants it.
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        torch.set_grad_enabled(gradients),
    ):
        scores = similarity(xs, ys, x.mask, y.mask)
    if gradients:
        (scores * weights_for(scores, weights)).sum().backward()
    return Outcome(scores.detach(), _gradient(xs), _gradient(ys), parameter_gradients(similarity))


def parameter_gradients(similarity: nn.Module) -> dict[str, Tensor]:
    """Name -> gradient, zeros where there is none."""
    return {name: _gradient(p).clone() for name, p in similarity.named_parameters()}


def alone(similarity: Similarity, x: Sequences, y: Sequences, *, gradients: bool = True) -> Outcome:
    """What the pairs give one by one, without any padding; -1 for a sequence without steps."""
    scores = x.values.new_full((len(x.values), len(y.values)), -1.0)
    weights = weights_for(scores)
    x_grad, y_grad = torch.zeros_like(x.values), torch.zeros_like(y.values)
    totals = {name: torch.zeros_like(p) for name, p in similarity.named_parameters()}
    for i, x_mask in enumerate(x.mask):
        for j, y_mask in enumerate(y.mask):
            if not (bool(x_mask.any()) and bool(y_mask.any())):
                continue
            pair = outcome(
                similarity,
                Sequences.from_tensor(x.values[i : i + 1, x_mask]),
                Sequences.from_tensor(y.values[j : j + 1, y_mask]),
                weights[i : i + 1, j : j + 1],
                gradients=gradients,
            )
            scores[i, j] = pair.scores[0, 0]
            x_grad[i, x_mask] += pair.x[0]
            y_grad[j, y_mask] += pair.y[0]
            for name, gradient in pair.parameters.items():
                totals[name] += gradient
    return Outcome(scores, x_grad, y_grad, totals)


def agree(
    found: Outcome, wanted: Outcome, where: str, *, gradients: bool, tolerance: float = 1e-8
) -> None:
    """Raise `Broken` unless both are the same up to rounding; gradients only if asked for."""
    same(found.scores, wanted.scores, tolerance, "score", where)
    if gradients:
        same(found.x, wanted.x, 10 * tolerance, "the gradient of x", where)
        same(found.y, wanted.y, 10 * tolerance, "the gradient of y", where)
        for name, gradient in wanted.parameters.items():
            what = f"the gradient of the parameter {name}"
            same(found.parameters[name], gradient, 10 * tolerance, what, where)


def weights_for(scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """One weight for each score, no two alike, so that errors do not cancel."""
    if weights is not None:
        return weights
    rows, columns = scores.shape
    i = torch.arange(rows, dtype=scores.dtype, device=scores.device)[:, None]
    j = torch.arange(columns, dtype=scores.dtype, device=scores.device)
    return 1.5 + torch.cos(1 + 2.3 * i + 0.7 * j)


def stacked(*batches: Sequences) -> Sequences:
    """The sequences of several batches in one, padded to the longest."""
    steps = max(batch.values.shape[1] for batch in batches)
    padded = [longer(batch, steps) for batch in batches]
    return Sequences(
        torch.cat([batch.values for batch in padded]), torch.cat([batch.mask for batch in padded])
    )


def longer(sequences: Sequences, steps: int) -> Sequences:
    """The same sequences, padded at the end to so many steps."""
    extra = steps - sequences.values.shape[1]
    return Sequences(
        nn.functional.pad(sequences.values, (0, 0, 0, extra)),
        nn.functional.pad(sequences.mask, (0, extra)),
    )


def to_front(sequences: Sequences) -> Sequences:
    """The same sequences with their padding at the end."""
    values, mask = torch.zeros_like(sequences.values), torch.zeros_like(sequences.mask)
    for i, real in enumerate(sequences.mask):
        steps = sequences.values[i, real]
        values[i, : len(steps)] = steps
        mask[i, : len(steps)] = True
    return Sequences(values, mask)


def rows(sequences: Sequences, index: slice | Tensor) -> Sequences:
    """Some of the sequences."""
    return Sequences(sequences.values[index], sequences.mask[index])


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
