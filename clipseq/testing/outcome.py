"""Scores and gradients of a batch, computed together or pair by pair."""

import attrs
import torch
from torch import Tensor, nn

from clipseq.sequences import Sequences
from clipseq.similarity import Similarity
from clipseq.testing.conformance import check_same


@attrs.frozen(eq=False)
class Outcome:
    """Scores (B, C), and the gradients of a weighted sum of them."""

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
    """Score a batch, and compute the gradients of a weighted sum of its scores.

    Args:
        weights: weights (B, C) of the sum. None: all different, see `weights_for`.
        gradients: if False, gradients are zero, which saves the time to compute them.
        autocast: whether to score under bfloat16 autocast.
    """
    similarity.zero_grad()
    xs, ys = (side.values.detach().clone().requires_grad_() for side in (x, y))
    # torch requires that backward runs outside of autocast.
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        torch.set_grad_enabled(gradients),
    ):
        scores = similarity(xs, ys, x.mask, y.mask)
    if gradients:
        (scores * weights_for(scores, weights)).sum().backward()
    return Outcome(scores.detach(), _gradient(xs), _gradient(ys), parameter_gradients(similarity))


def parameter_gradients(similarity: nn.Module) -> dict[str, Tensor]:
    """Return name -> gradient, with zeros for a parameter without a gradient."""
    return {name: _gradient(p).clone() for name, p in similarity.named_parameters()}


def alone(similarity: Similarity, x: Sequences, y: Sequences, *, gradients: bool = True) -> Outcome:
    """Score the pairs one by one, without padding; a sequence without steps scores -1."""
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


def check_agreement(
    found: Outcome, wanted: Outcome, where: str, *, gradients: bool, tolerance: float = 1e-8
) -> None:
    """Raise `Broken` unless both outcomes are equal up to rounding."""
    check_same(found.scores, wanted.scores, tolerance, "score", where)
    if gradients:
        check_same(found.x, wanted.x, 10 * tolerance, "the gradient of x", where)
        check_same(found.y, wanted.y, 10 * tolerance, "the gradient of y", where)
        for name, gradient in wanted.parameters.items():
            what = f"the gradient of the parameter {name}"
            check_same(found.parameters[name], gradient, 10 * tolerance, what, where)


def weights_for(scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return a different weight for each score, so that errors do not cancel."""
    if weights is not None:
        return weights
    rows, columns = scores.shape
    i = torch.arange(rows, dtype=scores.dtype, device=scores.device)[:, None]
    j = torch.arange(columns, dtype=scores.dtype, device=scores.device)
    return 1.5 + torch.cos(1 + 2.3 * i + 0.7 * j)


def stack_batches(*batches: Sequences) -> Sequences:
    """Concatenate the sequences of several batches, padded to the longest."""
    steps = max(batch.values.shape[1] for batch in batches)
    padded = [pad_to(batch, steps) for batch in batches]
    return Sequences(
        torch.cat([batch.values for batch in padded]), torch.cat([batch.mask for batch in padded])
    )


def pad_to(sequences: Sequences, steps: int) -> Sequences:
    """Pad the sequences at the end, to `steps` steps."""
    extra = steps - sequences.values.shape[1]
    return Sequences(
        nn.functional.pad(sequences.values, (0, 0, 0, extra)),
        nn.functional.pad(sequences.mask, (0, extra)),
    )


def to_front(sequences: Sequences) -> Sequences:
    """Move the padding of the sequences to the end."""
    values, mask = torch.zeros_like(sequences.values), torch.zeros_like(sequences.mask)
    for i, real in enumerate(sequences.mask):
        steps = sequences.values[i, real]
        values[i, : len(steps)] = steps
        mask[i, : len(steps)] = True
    return Sequences(values, mask)


def rows(sequences: Sequences, index: slice | Tensor) -> Sequences:
    """Select some of the sequences."""
    return Sequences(sequences.values[index], sequences.mask[index])


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
