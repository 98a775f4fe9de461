"""One training run, from a configuration to a run folder; and its continuation."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from clipseq.data import Clip, MapDataset
from clipseq.errors import CheckpointError, ClipseqError, DataError
from clipseq.evaluation.encoding import collate_for
from clipseq.training.config import RunConfig, write_config
from clipseq.training.datasets import open_dataset
from clipseq.training.folder import RunFolder
from clipseq.training.interruption import Interruption, TrainingInterrupted
from clipseq.training.models import build_model, check_model_config, run_tokenizer
from clipseq.training.stream import ShuffledBatches
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

    Args:
        config: the run; `config.training.out` is its folder.
        resume: continue the run in that folder from its last checkpoint. The continuation is the
            one of an uninterrupted run: same batches, optimizer, schedule and dropout.
        dataset: the clips, where the caller already has them open (the `MapDataset` that
            `config.data` describes).
        progress: called after each optimizer step.
        data_progress: called with the simulated clips so far, and all, where some are simulated.

    Returns:
        The trained model, in eval mode. The folder then holds config.toml, model/ (for
        `CLIP.from_pretrained`), checkpoints/last.ckpt and best.ckpt, metrics.csv, tensorboard/.

    Raises:
        ClipseqError: lightning is not installed; the run folder exists (or, on resume, does not).
        ConfigError: a model or data option that does not exist or does not fit.
        TrainingInterrupted: after Ctrl-C; a checkpoint was left, the message says how to go on.
        NonFiniteLoss: the loss became NaN or infinite; the message names the step and the clips.
    """
    _need_lightning()
    from lightning.pytorch import Trainer, seed_everything

    from clipseq.training.journal import Journal
    from clipseq.training.module import ClipTraining
    from clipseq.training.recorder import Recorder

    folder = RunFolder(config.training.out)
    if resume:
        if not folder.config.exists():
            raise CheckpointError(f"nothing to resume: {folder.config} does not exist")
    else:
        refuse_existing(folder)
    check_model_config(config.model)
    options = config.training
    if dataset is None:
        dataset = _open(config, folder, data_progress)
    training = dataset.subset("train")
    validation = dataset.subset("val") if "val" in dataset.splits else None
    if len(training) < 2:
        raise DataError(
            f"training needs at least two clips in the split 'train', found {len(training)}"
        )
    with _quiet():
        seed_everything(options.seed, verbose=False)
    write_config(config, folder.config)
    tokenizer = run_tokenizer(config, training.captions, folder, resume=resume)
    model = build_model(config.model, dataset.views, tokenizer)
    per_epoch = ShuffledBatches(len(training), options.batch_size, 0, seed=0).per_epoch
    steps = options.steps(per_epoch)
    start = _finished_steps(folder.last) if resume else 0
    batches = _Batches(
        training,
        model,
        ShuffledBatches(
            len(training),
            options.batch_size,
            steps * options.accumulate,
            seed=options.seed,
            start=start * options.accumulate,
        ),
        options.num_workers,
    )
    journal = Journal(folder.metrics, folder.tensorboard, start=start)
    model.micro_batch = options.micro_batch
    model._log_norm_stats = options.log_norms
    module = ClipTraining(model, options, steps)
    try:
        # Ctrl-C at the very last step: all is saved, and only then does the interrupt go on.
        with Interruption() as interruption, _quiet(), cpu_threads(options.threads):
            recorder = Recorder(
                folder,
                journal,
                _validation_batches(validation, model, options.batch_size),
                every=options.checkpoint_every,
                interruption=interruption,
                progress=progress,
            )
            trainer = Trainer(
                accelerator=options.accelerator,
                devices=1,
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
            model.eval().cpu().save_pretrained(folder.model)
    finally:
        journal.close()
    return model


def _open(
    config: RunConfig, folder: RunFolder, progress: Callable[[int, int], None] | None
) -> MapDataset:
    if config.data.simulated is None:
        return open_dataset(config.data, folder)
    # The clips go into the run folder: with its config beside them, what is done is not lost.
    write_config(config, folder.config)
    try:
        return open_dataset(config.data, folder, progress=progress)
    except KeyboardInterrupt:
        raise TrainingInterrupted(
            f"stopped while simulating; continue with: clipseq train --resume {folder.root}"
        ) from None


def refuse_existing(folder: RunFolder) -> None:
    """Raise if a run lies in `folder` already (or anything else does)."""
    if folder.root.exists() and (not folder.root.is_dir() or any(folder.root.iterdir())):
        how = (
            f"continue it with: clipseq train --resume {folder.root}; or choose another folder"
            if folder.config.exists()
            else "choose another folder"
        )
        raise ClipseqError(f"{folder.root} exists and would be overwritten; {how}")


class _Batches(DataLoader[Clip]):
    """Training batches that lightning may pick up in the middle of the run."""

    def __init__(
        self, clips: MapDataset, model: "CLIP", stream: ShuffledBatches, workers: int
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
    clips: MapDataset | None, model: "CLIP", batch_size: int
) -> "DataLoader[Clip] | None":
    if clips is None or len(clips) < 2:
        return None
    # Whole batches only: the loss depends on how many there are to be told apart.
    size = min(batch_size, len(clips))
    return DataLoader(clips, batch_size=size, drop_last=True, collate_fn=collate_for(model))


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the group; only the training process decides what it means.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _finished_steps(checkpoint: Path) -> int:
    return int(_checkpoint(checkpoint)["global_step"]) if checkpoint.exists() else 0


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
