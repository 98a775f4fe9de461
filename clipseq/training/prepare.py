"""Preparation of a run before its first step: configuration, clips, tokenizer and model."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import torch

from clipseq.data import MapDataset
from clipseq.data.simulation.radar import Radar
from clipseq.engine.files import beside
from clipseq.errors import CheckpointError, ConfigError, DataError
from clipseq.retrieval.sides import sides
from clipseq.training.checkpoint import Checkpoint, digest, read_last_checkpoint
from clipseq.training.config import RunConfig, read_config, write_config
from clipseq.training.datasets import check_captions_exist, open_dataset
from clipseq.training.folder import RunFolder
from clipseq.training.launch.interruption import TrainingInterrupted
from clipseq.training.launch.processes import Processes
from clipseq.training.models import (
    build_model,
    check_captions,
    check_model,
    choose_patches,
    fit_config,
    get_tokenizer,
    keep_patches,
    keep_tokenizer,
    pin_options,
)
from clipseq.training.selection import check_monitor

if TYPE_CHECKING:
    from clipseq.model import CLIP


@attrs.frozen(eq=False)
class Prepared:
    """The ingredients of a run, the same in each of its processes.

    Attributes:
        dataset: all clips.
        training: the clips to train on.
        validation: the clips to validate on; None if there are fewer than two.
        model: the model, with the weights of the checkpoint if there is one.
        checkpoint: the state to continue from; None for a new run.
    """

    dataset: MapDataset
    training: MapDataset
    validation: MapDataset | None
    model: "CLIP"
    checkpoint: Checkpoint | None

    @property
    def done(self) -> int:
        """Number of optimizer steps that are already finished."""
        return 0 if self.checkpoint is None else int(self.checkpoint["global_step"])


def prepare(
    config: RunConfig,
    folder: RunFolder,
    processes: Processes,
    *,
    resume: bool,
    dataset: MapDataset | None,
    progress: Callable[[int, int], None] | None,
) -> Prepared:
    """Check everything that can be checked, and find or create clips, tokenizer and model.

    The first process creates the content of the run folder; the others run later and find it. The
    folder is written last, so that a wrong configuration does not leave one behind.
    """
    if processes.first:
        refuse_unless_ready(folder, resume=resume)
    config = pin_options(config)
    if dataset is not None or config.data.simulated is None:
        if dataset is None:
            dataset = open_dataset(config.data, folder)
        return _prepare_on(dataset, config, folder, processes, resume=resume)
    dataset = _simulated(config, folder, progress, write=processes.first and not resume)
    try:
        return _prepare_on(dataset, config, folder, processes, resume=resume)
    except ValueError as error:
        raise ConfigError(
            f"{error}; the clips are simulated, so correct {folder.config} and continue with: "
            f"{folder.resume_command}"
        ) from error


def _simulated(
    config: RunConfig,
    folder: RunFolder,
    progress: Callable[[int, int], None] | None,
    *,
    write: bool,
) -> MapDataset:
    """Open the simulated clips, after simulating those that the run folder does not hold yet.

    The configuration is written first, so that the run can be resumed with the finished clips.
    """
    if write:
        # Report a mistake in [model] now, and not after all clips are simulated.
        check_model(config.model, Radar().views)
        write_config(config, folder.config)
    try:
        return open_dataset(config.data, folder, progress=progress)
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"stopped while simulating; continue with: {folder.resume_command}"
        ) from None
    except (ValueError, OSError):
        if write and not folder.data.exists():  # nothing to continue with
            folder.config.unlink()
        raise


def _prepare_on(
    dataset: MapDataset,
    config: RunConfig,
    folder: RunFolder,
    processes: Processes,
    *,
    resume: bool,
) -> Prepared:
    training, validation = _splits(dataset, config.training.batch_size, processes)
    if resume and folder.last.exists():  # the checkpoint belongs to patches that were chosen before
        config = keep_patches(config, read_config(folder.config))
    else:
        config = choose_patches(config, training)
    torch.manual_seed(config.training.seed)
    check_captions_exist(dataset, fit_config(config.model, dataset))
    tokenizer = get_tokenizer(
        config, training.captions, folder, resume=resume or not processes.first
    )
    model = build_model(
        config.model,
        dataset.views,
        tokenizer,
        modality=dataset.modality,
        paired_modality=dataset.paired_modality,
        paired_views=dataset.paired_views,
    )
    _, y = sides(model, dataset)  # raises if they do not fit
    check_monitor(config.training.monitor, validation, text=y.is_text)
    # A resumed run is not checked: it can change neither tokenizer nor context_length any more.
    check_captions(model, dataset, evaluated=not resume)
    checkpoint = read_last_checkpoint(folder, model, warn=processes.first) if resume else None
    if checkpoint is not None:
        if processes.first and checkpoint["clips"] != digest(training):
            warnings.warn(
                "the training clips are not those that the run was trained on before (other ids, "
                "captions or maps); the run continues with them",
                stacklevel=2,
            )
        model.load_state_dict(checkpoint["model"])
    if processes.first:
        write_config(config, folder.config)
        keep_tokenizer(tokenizer, folder)
    return Prepared(dataset, training, validation, model, checkpoint)


def _splits(
    dataset: MapDataset, batch_size: int, processes: Processes
) -> tuple[MapDataset, MapDataset | None]:
    """Return the clips to train and to validate on."""
    training = dataset.subset("train")
    if len(training) < 2:
        raise DataError(
            f"training needs at least two clips in the split 'train', found {len(training)}"
        )
    validation = dataset.subset("val") if "val" in dataset.splits else None
    if validation is not None and len(validation) < 2:
        validation = None  # nothing to compare it with
    for split, clips in (("train", training), ("val", validation)):
        if clips is not None and len(clips) < processes.size:
            raise DataError(
                f"the split {split!r} must have a clip for each of {processes.size} processes, "
                f"got {len(clips)}; start fewer processes"
            )
    if processes.first and batch_size > len(training):
        warnings.warn(
            f"training.batch_size is {batch_size}, but the split 'train' has {len(training)} "
            "clips: each batch is all of them",
            stacklevel=2,
        )
    return training, validation


def refuse_unless_ready(folder: RunFolder, *, resume: bool) -> None:
    """Raise an error if a new run would overwrite something, or if there is nothing to resume."""
    if not resume:
        refuse_existing(folder)
    elif not folder.config.exists():
        raise CheckpointError(f"nothing to resume: {folder.config} does not exist")


def refuse_existing(folder: RunFolder) -> None:
    """Raise ConfigError if `folder` holds a run already, or anything else."""
    root = folder.root
    # A run that was killed before it had its configuration leaves no more than these.
    nothing = {folder.processes, folder.lock, beside(folder.config)}
    if root.is_dir() and nothing.issuperset(root.iterdir()):
        return
    if root.exists():
        how = (
            f"continue it with: {folder.resume_command}; or choose another folder"
            if folder.config.exists()
            else "choose another folder"
        )
        raise ConfigError(f"{root} exists and would be overwritten; {how}")
