"""Checkpoints: everything that a run needs to resume as if it had not been interrupted.

A checkpoint is a dictionary of tensors and numbers that ``torch.load(path)`` reads:

=============  =====================================================================
model          the weights, as `CLIP.load_state_dict` takes them
optimizer      the state of AdamW
scaler         the state of the loss scaler of "16-mixed"; empty for other precisions
global_step    finished optimizer steps, on which learning rate and dropout depend
best           the best validation so far: monitor, value, step, since; see `Selection`
seconds        the time spent on these steps
=============  =====================================================================
"""

import os
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from clipseq.errors import CheckpointError
from clipseq.training.folder import RunFolder
from clipseq.training.selection import Selection

Checkpoint = dict[str, Any]

KEYS = {"model", "optimizer", "scaler", "global_step", "best", "seconds"}


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a temporary file and rename it to `path`, so that a kill leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(checkpoint, partial)
    os.replace(partial, path)


@attrs.frozen(eq=False)
class Best:
    """The checkpoint of the best validation: its weights, and why they are the best."""

    weights: dict[str, Any]
    selection: Selection


def read_best_checkpoint(folder: RunFolder) -> Best | None:
    """Read the checkpoint of the best validation; return None if there is none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if not folder.best.exists():
        return None
    try:
        checkpoint = torch.load(folder.best, map_location="cpu", weights_only=True)
        best = Best(checkpoint["model"], Selection(**checkpoint["best"]))
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {folder.best} cannot be read: {error}; delete it to keep the weights "
            "of the last step"
        ) from error
    return best


def read_last_checkpoint(folder: RunFolder, model: nn.Module) -> Checkpoint | None:
    """Read the run's last checkpoint; return None if there is none yet.

    Raises:
        CheckpointError: the file cannot be read, or its weights are not those of `model`; the
            message names the weights.
    """
    if not folder.last.exists():
        return None
    try:
        checkpoint: Checkpoint = torch.load(folder.last, map_location="cpu", weights_only=True)
        missing = KEYS - checkpoint.keys()
    except Exception as error:
        raise CheckpointError(f"the checkpoint {folder.last} cannot be read: {error}") from error
    if missing:
        raise CheckpointError(
            f"the checkpoint {folder.last} cannot be read: it must hold {', '.join(sorted(KEYS))}, "
            f"got {', '.join(sorted(checkpoint))}"
        )
    saved = {name: value.shape for name, value in checkpoint["model"].items()}
    own = {name: value.shape for name, value in model.state_dict().items()}
    shared = own.keys() & saved.keys()
    problems = {
        "missing": sorted(own.keys() - saved.keys()),
        "unexpected": sorted(saved.keys() - own.keys()),
        "of another shape": sorted(name for name in shared if own[name] != saved[name]),
    }
    if any(problems.values()):
        lines = [f"{what}: {', '.join(names)}" for what, names in problems.items() if names]
        raise CheckpointError(
            f"the checkpoint {folder.last} does not fit the model that {folder.config} describes; "
            f"{'; '.join(lines)}. Undo later changes to [model] or to the installed plugins"
        )
    return checkpoint
