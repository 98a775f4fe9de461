"""NaN and infinity in training: the error, and the clips and weights that it names."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from clipseq.errors import ClipseqError, set_origin
from clipseq.training.launch.processes import Processes


class NonFiniteLoss(ClipseqError, FloatingPointError):
    """Training stopped, without saving, at NaN or infinity in the loss, a gradient or a weight."""


def exploded(what: str, processes: Processes) -> NonFiniteLoss:
    """Return the error for a finding of all processes of the run; the first one reports it."""
    error = NonFiniteLoss(
        f"{what}. Lower training.learning_rate, lengthen training.warmup_steps, set "
        "training.gradient_clip, or use precision = '32-true'"
    )
    if processes.size > 1:
        set_origin(error, 0, here=processes.first)
    return error


def non_finite_clips(batch: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the ids of the clips with NaN or infinity in the batch's values of these names."""
    bad: set[int] = set()
    for name in names:
        values = batch[name]
        for tensor in values.values() if isinstance(values, Mapping) else [values]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                bad |= set((~tensor.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist())
    return [str(batch["ids"][item]) for item in sorted(bad)]


def non_finite_state(model: nn.Module, losses: Mapping[str, float]) -> str:
    """Describe the weights and validation losses that are not finite; return "" if all are."""
    weights = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    found = [f"the weights {some(weights)} are not finite"] if weights else []
    found += [f"the validation {k} is {v}" for k, v in losses.items() if not math.isfinite(v)]
    return " and ".join(found)


def some(names: Sequence[Any], at_most: int = 8) -> str:
    """List at most `at_most` of the names, and count the rest."""
    shown = ", ".join(str(name) for name in names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
