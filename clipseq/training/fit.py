"""One training run, from a configuration to a run folder; and its continuation."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler

from clipseq.data import Clip, MapDataset
from clipseq.data.simulation.radar import Radar
from clipseq.encoders import HuggingFaceTextTower
from clipseq.errors import CheckpointError, ClipseqError, ConfigError, DataError
from clipseq.evaluation.encoding import collate_for
from clipseq.training.config import RunConfig, absolute, write_config
from clipseq.training.datasets import open_dataset
from clipseq.training.folder import RunFolder
from clipseq.training.launch.interruption import Interruption, TrainingInterrupted
from clipseq.training.launch.processes import Processes, cluster, joined, layout
from clipseq.training.models import (
    build_model,
    check_captions,
    check_model,
    check_model_config,
    keep_tokenizer,
    pinned,
    run_tokenizer,
)
from clipseq.training.stream import OwnRows, ShuffledBatches
from clipseq.training.threads import cpu_threads

if TYPE_CHECKING:
    from clipseq.model import CLIP
    from clipseq.training.recorder import Progress

log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    dataset: MapDataset | None = None,
    progress: "Progress | None" = None,
    data_progress: Callable[[int, int], None] | None = None,
) -> "CLIP":
    """Train a CLIP as `config` says and leave a run folder.

    With several processes (torchrun's, or `config.training.devices` of them) each calls this and
    gets the model; the first one writes the folder. Where torchrun has not started them, the
    command that this process was started with is started again for each of the others.

    Args:
        config: the run; `config.training.out` is its folder.
        resume: continue the run in that folder from its last checkpoint. The continuation is the
            one of an uninterrupted run: same batches, optimizer, schedule and dropout.
        dataset: the clips, where the caller already has them open (the `MapDataset` that
            `config.data` describes).
        progress: called after each optimizer step, in the first process only.
        data_progress: called with the simulated clips so far, and all, where some are simulated;
            in the first process only.

    Returns:
        The trained model, in eval mode. The folder then holds config.toml, model/ (for
        `CLIP.from_pretrained`), checkpoints/last.ckpt and best.ckpt, metrics.csv, tensorboard/.

    Raises:
        ClipseqError: lightning is not installed.
        ConfigError: the run folder exists; a model, data or training option that does not exist
            or does not fit. Nothing is written then, but for clips that were simulated.
        CheckpointError: on resume, the run folder does not exist, or its checkpoint is corrupt or
            does not fit the model.
        TrainingInterrupted: after Ctrl-C or SIGTERM (to any of the processes); a checkpoint was
            left, the message says how to go on.
        NonFiniteLoss: the loss, a gradient or a weight became NaN or infinite; the message names
            the step, and of a loss the clips.
        ProcessLost: another process of the run ended or does not answer; the message says which,
            at which step, why if it left word, and how to go on.
    """
    _need_lightning()
    config = absolute(config)
    with _quiet(), joined(config.training) as processes:
        folder = RunFolder(config.training.out)
        prepared = processes.in_turn(
            lambda: _prepare(
                config,
                folder,
                processes,
                resume=resume,
                dataset=dataset,
                progress=data_progress if processes.first else None,
            )
        )
        return _fit(config, folder, processes, prepared, progress if processes.first else None)


@attrs.frozen(eq=False)
class _Prepared:
    """What a run is made from, the same in each of its processes."""

    training: MapDataset
    validation: MapDataset | None
    model: "CLIP"
    finished: int  # steps


def _prepare(
    config: RunConfig,
    folder: RunFolder,
    processes: Processes,
    *,
    resume: bool,
    dataset: MapDataset | None,
    progress: Callable[[int, int], None] | None,
) -> _Prepared:
    """Check everything that can be checked, and find or make clips, tokenizer and model.

    The first process makes what goes into the run folder; the others come later, and find it. It
    is written last: a configuration that is wrong leaves no folder in the way of the right one.
    """
    if processes.first:
        if not resume:
            refuse_existing(folder)
        elif not folder.config.exists():
            raise CheckpointError(f"nothing to resume: {folder.config} does not exist")
    check_model_config(config.model)
    config = pinned(config)
    if dataset is not None:
        return _prepare_on(dataset, config, folder, processes, resume=resume)
    dataset = _open(config, folder, progress, write=processes.first)
    try:
        return _prepare_on(dataset, config, folder, processes, resume=resume)
    except ValueError as error:
        if config.data.simulated is None:
            raise
        raise ConfigError(
            f"{error}; the clips are simulated, so correct {folder.config} and continue with: "
            f"clipseq train --resume {folder.root}"
        ) from error


def _prepare_on(
    dataset: MapDataset,
    config: RunConfig,
    folder: RunFolder,
    processes: Processes,
    *,
    resume: bool,
) -> _Prepared:
    from lightning.pytorch import seed_everything

    training = dataset.subset("train")
    if len(training) < 2:
        raise DataError(
            f"training needs at least two clips in the split 'train', found {len(training)}"
        )
    validation = dataset.subset("val") if "val" in dataset.splits else None
    if validation is not None and len(validation) < 2:
        validation = None  # nothing to be told apart
    for split, clips in (("train", training), ("val", validation)):
        if clips is not None and len(clips) < processes.size:
            raise DataError(
                f"the split {split!r} has {len(clips)} clips for {processes.size} processes: each "
                "needs at least one; start fewer"
            )
    if processes.first and config.training.batch_size > len(training):
        warnings.warn(
            f"training.batch_size is {config.training.batch_size}, but the split 'train' has "
            f"{len(training)} clips: each batch is all of them",
            stacklevel=2,
        )
    seed_everything(config.training.seed, verbose=False)
    tokenizer = run_tokenizer(
        config, training.captions, folder, resume=resume or not processes.first
    )
    model = build_model(config.model, dataset.views, tokenizer)
    # A run that has begun goes on: it can change neither tokenizer nor context_length any more.
    check_captions(model, dataset, evaluated=not resume)
    finished = _finished_steps(folder, model) if resume else 0
    if processes.first:
        write_config(config, folder.config)
        keep_tokenizer(tokenizer, folder)
    return _Prepared(training, validation, model, finished)


def _fit(
    config: RunConfig,
    folder: RunFolder,
    processes: Processes,
    prepared: _Prepared,
    progress: "Progress | None",
) -> "CLIP":
    from lightning.pytorch import Trainer

    from clipseq.training.journal import Journal
    from clipseq.training.module import ClipTraining
    from clipseq.training.recorder import Recorder

    options, training, start = config.training, prepared.training, prepared.finished
    model = prepared.model
    per_epoch = ShuffledBatches(len(training), options.batch_size, 0, seed=0).per_epoch
    steps = options.steps(per_epoch)
    stream = ShuffledBatches(
        len(training),
        options.batch_size,
        steps * options.accumulate,
        seed=options.seed,
        start=start * options.accumulate,
    )
    batches = _Batches(training, model, _own(stream, processes), options.num_workers)
    journal = None
    if processes.first:
        journal = Journal(folder.metrics, folder.tensorboard, start=start)
    model.micro_batch = options.micro_batch
    model._log_norm_stats = options.log_norms
    module = ClipTraining(model, options, steps)
    try:
        # Ctrl-C at the very last step: all is saved, and only then does the interrupt go on.
        with Interruption() as interruption, cpu_threads(options.threads):
            recorder = Recorder(
                folder,
                processes,
                journal,
                _validation_batches(prepared.validation, model, options.batch_size, processes),
                every=options.checkpoint_every,
                interruption=interruption,
                progress=progress,
            )
            devices, nodes = layout(options)
            trainer = Trainer(
                accelerator=options.accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy=_strategy(processes, model),
                plugins=cluster(processes.size),
                precision=options.precision,
                max_epochs=1,  # the stream of batches is the whole run
                max_steps=steps,
                accumulate_grad_batches=options.accumulate,
                gradient_clip_val=options.gradient_clip or None,
                callbacks=[recorder],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            if start < steps:
                trainer.fit(module, batches, ckpt_path=str(folder.last) if start else None)
            else:
                module.load_state_dict(_checkpoint(folder.last)["state_dict"])
            processes.doing = "while the model was saved"
            model.eval().cpu()
            if processes.first:
                model.save_pretrained(folder.model)
            processes.wait()
    finally:
        if journal is not None:
            journal.close()
    return model


def _strategy(processes: Processes, model: "CLIP") -> Any:
    if processes.size == 1:
        return "auto"
    from lightning.pytorch.strategies import DDPStrategy

    # DDP waits for the gradient of every parameter unless it looks for those without one: of a
    # similarity whose weight is 0, and, who knows, in a pretrained tower.
    idle = model.sequence_loss_fn is not None and not model.compares_sequences
    tower = model.y_encoder
    pretrained = isinstance(tower, HuggingFaceTextTower) and not tower.config.freeze
    return DDPStrategy(find_unused_parameters=idle or pretrained)


def _open(
    config: RunConfig,
    folder: RunFolder,
    progress: Callable[[int, int], None] | None,
    *,
    write: bool,
) -> MapDataset:
    if config.data.simulated is None:
        return open_dataset(config.data, folder)
    begun = folder.config.exists()
    if write:
        # What is wrong with the model is said now, and not when all clips are simulated.
        check_model(config.model, Radar().views)
        # They go into the run folder: with its config beside them, what is done is not lost.
        write_config(config, folder.config)
    try:
        return open_dataset(config.data, folder, progress=progress)
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"stopped while simulating; continue with: clipseq train --resume {folder.root}"
        ) from None
    except (ValueError, OSError):
        if write and not begun and not folder.data.exists():  # nothing to go on with
            folder.config.unlink()
            folder.root.rmdir()
        raise


def refuse_existing(folder: RunFolder) -> None:
    """Raise if a run lies in `folder` already (or anything else does)."""
    if folder.root.exists() and (not folder.root.is_dir() or any(folder.root.iterdir())):
        how = (
            f"continue it with: clipseq train --resume {folder.root}; or choose another folder"
            if folder.config.exists()
            else "choose another folder"
        )
        raise ConfigError(f"{folder.root} exists and would be overwritten; {how}")


class _Batches(DataLoader[Clip]):
    """Training batches that lightning may pick up in the middle of the run."""

    def __init__(
        self, clips: MapDataset, model: "CLIP", stream: Sampler[list[int]], workers: int
    ) -> None:
        super().__init__(
            clips,
            batch_sampler=stream,
            collate_fn=collate_for(model),
            num_workers=workers,
            worker_init_fn=_ignore_interrupts if workers else None,
            persistent_workers=workers > 0,
        )

    # The stream is built to start where the checkpoint stopped, so there is no state to carry;
    # having these two methods is how a loader tells lightning that it can resume.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _validation_batches(
    clips: MapDataset | None, model: "CLIP", batch_size: int, processes: Processes
) -> "DataLoader[Clip] | None":
    if clips is None:
        return None
    # Whole batches only: the loss depends on how many there are to be told apart.
    size = min(batch_size, len(clips))
    whole = BatchSampler(SequentialSampler(clips), size, drop_last=True)
    return DataLoader(clips, batch_sampler=_own(whole, processes), collate_fn=collate_for(model))


def _own(batches: Sampler[list[int]], processes: Processes) -> Sampler[list[int]]:
    return OwnRows(batches, processes.rank, processes.size) if processes.size > 1 else batches


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the group; only the training process decides what it means.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _finished_steps(folder: RunFolder, model: "CLIP") -> int:
    if not folder.last.exists():
        return 0
    checkpoint = _checkpoint(folder.last)
    prefix = "clip."  # the model's name in `ClipTraining`
    saved = {k.removeprefix(prefix): v.shape for k, v in checkpoint["state_dict"].items()}
    own = {k: v.shape for k, v in model.state_dict().items()}
    problems = {
        "missing": sorted(own.keys() - saved.keys()),
        "unexpected": sorted(saved.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & saved.keys() if own[k] != saved[k]),
    }
    if any(problems.values()):
        lines = [f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys]
        raise CheckpointError(
            f"the checkpoint {folder.last} does not fit the model that {folder.config} describes; "
            f"{'; '.join(lines)}. Undo what was changed since: in [model], or in which plugins "
            "are installed"
        )
    return int(checkpoint["global_step"])


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error
    return state


def _need_lightning() -> None:
    from importlib.util import find_spec

    if find_spec("lightning") is None:
        raise ClipseqError(
            "training needs lightning, which is not installed: pip install 'clipseq[train]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lightning's advice; its warnings about what may be wrong still come through."""
    import lightning.pytorch  # noqa: F401  (which sets the levels of its loggers)

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _ADVICE:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


# Hints on speed and notices between libraries, which a user of clipseq can do nothing about.
_ADVICE = (
    r".*does not have many workers.*",
    r".*You defined a `validation_step`.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
