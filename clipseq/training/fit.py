"""One training run, from a configuration to a run folder, and its resumption."""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from clipseq.config import unstructure
from clipseq.data import MapDataset
from clipseq.encoders import HuggingFaceTextTower
from clipseq.engine.options import check_kind
from clipseq.engine.process_state import restored
from clipseq.errors import ClipseqError
from clipseq.registry import available_similarities
from clipseq.training.card import card_of_run
from clipseq.training.checkpoint import digest, read_best_checkpoint
from clipseq.training.config import RunConfig, make_absolute
from clipseq.training.datasets import open_dataset
from clipseq.training.folder import RunFolder
from clipseq.training.launch.interruption import (
    Interruption,
    TrainingInterrupted,
    is_gone,
    naming_the_command,
)
from clipseq.training.launch.processes import Processes, join_processes, layout, make_fabric
from clipseq.training.lock import locked
from clipseq.training.models import pin_options
from clipseq.training.prepare import (
    Prepared,
    prepare,
    refuse_existing,
    refuse_unless_ready,
)
from clipseq.training.schedule import Schedule
from clipseq.training.stream import (
    ShuffledBatches,
    ending_workers,
    training_batches,
    validation_batches,
)
from clipseq.training.summary import Summary, summarize
from clipseq.training.threads import cpu_threads, default_threads

if TYPE_CHECKING:
    from clipseq.model import CLIP
    from clipseq.training.loop import Progress


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    dataset: MapDataset | None = None,
    progress: "Progress | None" = None,
    data_progress: Callable[[int, int], None] | None = None,
    started: Callable[[Summary], None] | None = None,
) -> "CLIP":
    """Train a CLIP as `config` describes and write a run folder.

    With several processes (those of torchrun, or `config.training.devices` of them), each calls
    this function and gets the model; the first one writes the folder. If torchrun has not started
    them, the command that started this process is started again for each of the others.

    The call leaves the process as it found it, random generators, environment and warning filters
    included, also if it raises.

    Args:
        config: the run; `config.training.out` is its folder.
        resume: continue the run in that folder from its last checkpoint, with the same batches,
            optimizer state, schedule and dropout as without the interruption.
        dataset: the `MapDataset` that `config.data` describes, if it is open already.
        progress: called after each optimizer step, in the first process only.
        data_progress: called as data_progress(done, clips) while clips are simulated, in the first
            process only.
        started: called before the first step with what the run has found, in the first process
            only.

    Returns:
        The model of the best validation by `training.monitor`, in eval mode; without validation,
        that of the last step. The folder then holds config.toml, model/ with that model (for
        `CLIP.from_pretrained`) and model-last/ with that of the last step, checkpoints/last.ckpt
        and best.ckpt, metrics.csv, tensorboard/.

    Raises:
        ClipseqError: lightning is not installed.
        TypeError: `config`, `resume` or `dataset` is of another class.
        ConfigError: the run folder exists, or another command is training the run; a model, data
            or training option does not exist or does not fit. Nothing has been written then, except
            simulated clips.
        CheckpointError: on resume, the run folder does not exist, or its checkpoint is corrupt or
            does not fit the model.
        TrainingInterrupted: after Ctrl-C, SIGTERM or SIGHUP (to any of the processes), or if the
            reader of what `progress` writes has gone; a checkpoint has been written, and the
            message says how to continue.
        TrainingStopped: a file cannot be read or written, for example since the disk is full, or a
            process that loads clips was killed; the message says how to continue.
        NonFiniteLoss: the loss, a gradient or a weight became NaN or infinite; the message names
            the step and, for a loss, the clips.
        ProcessLost: another process of the run ended or does not answer; the message says which
            one, at which step, the reason if it is known, and how to continue.
    """
    _need_lightning()
    check_kind("resume", resume, bool, "True or False")
    check_kind("config", config, RunConfig, "a RunConfig")
    check_kind("dataset", dataset, (MapDataset, type(None)), "a MapDataset or None")
    config = make_absolute(config)
    folder = RunFolder(config.training.out)
    with (
        restored(),
        _quiet(),
        torch.inference_mode(False),
        torch.enable_grad(),
        join_processes(config.training) as processes,
        naming_the_command(folder),
        ExitStack() as held,
    ):

        def prepare_and_lock() -> Prepared:
            if processes.first:
                refuse_unless_ready(folder, resume=resume)
                held.enter_context(locked(folder))
            return prepare(
                config,
                folder,
                processes,
                resume=resume,
                dataset=dataset,
                progress=data_progress if processes.first else None,
            )

        with Interruption(at_once=True):
            if processes.size > 1:
                processes.agree(_terms(config))
            prepared = processes.in_turn(prepare_and_lock)
        if processes.first and started is not None:
            try:
                started(_summary(config, prepared, processes))
            except OSError as error:
                if not is_gone(error):
                    raise
                raise TrainingInterrupted(
                    f"stopped before the first step, since its progress cannot be shown ({error}); "
                    f"continue with: {folder.resume_command}"
                ) from error
        return _fit(config, folder, processes, prepared, progress if processes.first else None)


def plan(
    config: RunConfig,
    *,
    dataset: MapDataset | None = None,
    data_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Prepare a new run as `train` would, and report what was found, without training.

    Nothing is left on disk. Clips that the run would simulate are simulated for this, in a
    temporary folder.

    Args:
        config: the run.
        dataset: the `MapDataset` that `config.data` describes, if it is open already.
        data_progress: called as data_progress(done, clips) while clips are simulated.

    Raises:
        ClipseqError: as `train` raises before its first step.
    """
    _need_lightning()
    check_kind("config", config, RunConfig, "a RunConfig")
    check_kind("dataset", dataset, (MapDataset, type(None)), "a MapDataset or None")
    config = make_absolute(config)
    refuse_existing(RunFolder(config.training.out))
    processes = Processes()
    devices, nodes = layout(config.training)
    processes.size = devices * nodes
    with restored(), _quiet(), TemporaryDirectory() as scratch:
        make_fabric(config.training)  # raises its errors before clips are simulated
        folder = RunFolder(Path(scratch) / "run")
        pin_options(config)
        if dataset is None:
            dataset = open_dataset(config.data, folder, progress=data_progress)
        folder = RunFolder(Path(scratch) / "prepared")
        prepared = prepare(config, folder, processes, resume=False, dataset=dataset, progress=None)
        return _summary(config, prepared, processes)


def _terms(config: RunConfig) -> dict[str, str]:
    """Return what every process of a run must have: its options, and the same plugins."""
    terms = {
        f"{table}.{name}": repr(value)
        for table, values in unstructure(config).items()
        for name, value in values.items()
        if (table, name) != ("data", "path")  # each machine may have its own copy
    }
    plugins = [
        f"{name} of {info.distribution} {info.version}"
        for name, info in available_similarities().items()
    ]
    return terms | {"the plugins": ", ".join(plugins), "torch": torch.__version__}


def _summary(config: RunConfig, prepared: Prepared, processes: Processes) -> Summary:
    options = config.training
    stream = ShuffledBatches(len(prepared.training), options.batch_size, 0, seed=options.seed)
    return summarize(
        config,
        prepared.model,
        prepared.dataset,
        device=make_fabric(options).device.type,
        processes=processes.size,
        batch_size=stream.batch_size,
        batches_per_epoch=stream.per_epoch,
        done=prepared.done,
    )


def _fit(
    config: RunConfig,
    folder: RunFolder,
    processes: Processes,
    prepared: Prepared,
    progress: "Progress | None",
) -> "CLIP":
    from clipseq.training.journal import Journal
    from clipseq.training.loop import run_steps

    options, model = config.training, prepared.model
    rank, size = processes.rank, processes.size
    stream = ShuffledBatches(len(prepared.training), options.batch_size, 0, seed=options.seed)
    schedule = Schedule.of(options, stream.per_epoch, prepared.checkpoint)
    steps = schedule.steps
    stream.batches = schedule.place(steps) * options.accumulate
    stream.start = schedule.place(prepared.done) * options.accumulate
    model.micro_batch = options.micro_batch
    model._log_norm_stats = options.log_norms
    journal = None
    if processes.first:
        journal = Journal(folder.metrics, folder.tensorboard, start=prepared.done)
    try:
        # Ctrl-C in the last step is raised after everything has been saved.
        threads = default_threads(model) if options.threads is None else options.threads
        with Interruption() as interruption, cpu_threads(threads):
            if prepared.done < steps:
                fabric = make_fabric(options, find_unused_parameters=_may_skip_parameters(model))
                fabric.launch()
                loader = training_batches(
                    prepared.training,
                    stream,
                    model,
                    options.augment,
                    rank=rank,
                    size=size,
                    workers=options.num_workers,
                )
                with ending_workers(loader) as batches:
                    run_steps(
                        model,
                        batches,
                        validation_batches(
                            prepared.validation, options.batch_size, model, rank, size
                        ),
                        prepared.validation,
                        schedule=schedule,
                        clips=digest(prepared.training),
                        checkpoint=prepared.checkpoint,
                        options=options,
                        folder=folder,
                        fabric=fabric,
                        processes=processes,
                        journal=journal,
                        interruption=interruption,
                        progress=progress,
                    )
            processes.doing = "while the model was saved"
            model.eval().cpu()
            processes.wait()  # the best checkpoint is on disk
            best = read_best_checkpoint(folder) if prepared.validation is not None else None

            def save(to: Path, which: str) -> None:
                model.card = card_of_run(config, prepared.training, steps, which)
                if processes.first:
                    model.save_pretrained(to)

            if best is None:
                save(folder.model, "the last step")
            else:
                save(folder.model_last, "the last step")
                model.load_state_dict(best.weights)
                save(folder.model, best.selection.describe())
            processes.wait()
    finally:
        if journal is not None:
            journal.close()
    return model


def _may_skip_parameters(model: "CLIP") -> bool:
    """Return True if some parameters may get no gradient; DDP would otherwise wait for them.

    These are the parameters of a similarity whose weight is 0, and perhaps some of a pretrained
    tower.
    """
    idle = model.sequence_loss_fn is not None and not model.compares_sequences
    return idle or any(
        isinstance(module, HuggingFaceTextTower) and not module.config.freeze
        for module in model.modules()
    )


def _need_lightning() -> None:
    if importlib.util.find_spec("lightning") is None:
        raise ClipseqError(
            "training needs lightning, which is not installed: pip install 'clipseq[train]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lightning's reports about itself, but not its warnings."""
    import lightning.fabric  # noqa: F401  (which sets the levels of its loggers)

    # Fabric reports through the Trainer's logger if both are installed.
    loggers = [logging.getLogger(name) for name in ("lightning.fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
