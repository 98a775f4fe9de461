"""Checkpoints: everything that a run needs to resume as if it had not been interrupted.

A checkpoint is a dictionary of tensors and numbers that ``torch.load(path)`` reads:

=============  =====================================================================
model          the weights, as `CLIP.load_state_dict` takes them
optimizer      the state of AdamW
scaler         the state of the loss scaler of "16-mixed"; empty for other precisions
global_step    finished optimizer steps, on which learning rate and dropout depend
best           the best validation so far: monitor, value, step, since; see `Selection`
seconds        the time spent on these steps
epochs         passes over the training clips so far, whatever the batch size was
clips          a digest of the training clips; see `digest`
=============  =====================================================================
"""

import hashlib
import json
import shlex
import warnings
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from clipseq.data import MapDataset
from clipseq.data.clip import TEXT
from clipseq.engine.files import replacing
from clipseq.errors import CheckpointError
from clipseq.training.folder import RunFolder
from clipseq.training.selection import Selection

Checkpoint = dict[str, Any]

DIGESTED = 16
"""Number of clips whose maps are part of the digest."""

KEYS = {"model", "optimizer", "scaler", "global_step", "best", "seconds", "epochs", "clips"}


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; a kill leaves the previous file.

    Raises:
        OSError: the disk is full, or does not take the file for another reason.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(checkpoint, file)


def digest(clips: MapDataset) -> str:
    """Return a hash of clips, to notice if a run gets others.

    It covers the ids, captions and lengths of all clips, and the maps of some of them.
    """
    found = hashlib.blake2b(digest_size=16)
    signals = [name for name in clips.modalities if name != TEXT]
    lengths = [clips.frame_counts(name) for name in signals]
    for facts in zip(clips.ids, clips.captions, *lengths, strict=True):
        found.update(json.dumps(facts).encode())
    some = clips.spread(DIGESTED)
    for clip in (some[i] for i in range(len(some))):
        for maps in (clip.signal, clip.paired):
            for view in sorted(maps):
                found.update(np.ascontiguousarray(maps[view]).tobytes())
    return found.hexdigest()


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


def read_last_checkpoint(
    folder: RunFolder, model: nn.Module, *, warn: bool = True
) -> Checkpoint | None:
    """Read the checkpoint to continue from; return None if there is none yet.

    That is the run's last one. If it is lost or damaged, it is the one of the best validation, with
    a warning.

    Args:
        folder: the run folder.
        model: the model that the configuration describes.
        warn: whether to warn; one process of a run suffices.

    Raises:
        CheckpointError: no file can be read though there is one, or the weights are not those of
            `model`; the message names the weights.
    """
    found, problem = folder.last, f"the checkpoint {folder.last} is missing"
    checkpoint: Checkpoint | None = None
    if folder.last.exists():
        try:
            checkpoint = _read(folder.last)
        except CheckpointError as error:
            problem = str(error)
    if checkpoint is None and folder.best.exists():
        found = folder.best
        try:
            checkpoint = _read(folder.best)
        except CheckpointError as error:
            raise CheckpointError(f"{problem}, and {error}; {_again(folder)}") from error
        if warn:
            warnings.warn(
                f"{problem}; the run continues from {folder.best}, after step "
                f"{checkpoint['global_step']}",
                stacklevel=2,
            )
    if checkpoint is None:
        if folder.last.exists():
            raise CheckpointError(f"{problem}; {_again(folder)}")
        if warn and folder.metrics.exists():
            warnings.warn(
                f"{folder.root} holds no checkpoint yet; the run starts again at step 1",
                stacklevel=2,
            )
        return None
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
            f"the checkpoint {found} does not fit the model that {folder.config} describes; "
            f"{'; '.join(lines)}. Undo later changes to [model] or to the installed plugins"
        )
    return checkpoint


def _read(path: Path) -> Checkpoint:
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        missing = KEYS - checkpoint.keys()
    except Exception as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error
    if missing:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: it must hold {', '.join(sorted(KEYS))}, "
            f"got {', '.join(sorted(checkpoint))}"
        )
    return checkpoint


def _again(folder: RunFolder) -> str:
    """Return how to start again if every checkpoint is lost."""
    remove = shlex.join(["rm", "-r", str(folder.checkpoints)])
    return f"to start again from step 1: {remove} && {folder.resume_command}"
