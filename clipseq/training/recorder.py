"""What happens around the steps: validation, the journal, checkpoints, Ctrl-C, progress."""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from clipseq.errors import set_origin
from clipseq.training.folder import RunFolder
from clipseq.training.journal import Journal
from clipseq.training.launch.interruption import Interruption, TrainingInterrupted
from clipseq.training.launch.processes import Processes
from clipseq.training.module import exploded, some

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each optimizer step with the step, the number of steps, and the step's metrics."""


class Recorder(Callback):
    """After each optimizer step: validate and save when due, write the journal, report, stop.

    One callback does all of this because the order matters: a checkpoint that is left by step k
    must be of a state in which step k is wholly done, its validation included, and its row must
    be in the journal before; only then is a resumed run the continuation of an uninterrupted one.

    Every process of the run has one. They stop after the same step, whichever was asked to; the
    first alone writes.

    Args:
        folder: where checkpoints go.
        processes: of the run.
        journal: gets one row per optimizer step; None in all processes but the first.
        validation: batches of the validation split, or None where there is none.
        every: optimizer steps between validations (and checkpoints).
        interruption: asked after each step whether to stop.
        progress: told of each step.
    """

    def __init__(
        self,
        folder: RunFolder,
        processes: Processes,
        journal: Journal | None,
        validation: "DataLoader[Any] | None",
        *,
        every: int,
        interruption: Interruption,
        progress: Progress | None = None,
    ) -> None:
        self.folder = folder
        self.processes = processes
        self.journal = journal
        self.validation = validation
        self.every = every
        self.interruption = interruption
        self.progress = progress
        self.best = float("inf")
        self.seconds = 0.0
        self._began = time.monotonic()
        self._step = 0
        self._sums: dict[str, float] = {}
        self._batches = 0
        self._norm = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        self.seconds = state_dict["seconds"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The last batch of a finished run is not the last of one that goes on for longer.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._began = time.monotonic() - self.seconds
        self.interruption.insist()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.processes.doing = f"in step {trainer.global_step + 1} of {trainer.max_steps}"

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        # Before clipping: the norm that says how far from stable a run is.
        self._norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        # A scaler of losses leaves such a step out, and tries a smaller scale.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not scaled and not math.isfinite(self._norm):
            raise exploded(
                trainer,
                f"the gradient of step {trainer.global_step + 1} has norm {self._norm} though its "
                "loss is finite",
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        clip: Any = pl_module.clip
        metrics = {name: float(value) for name, value in clip.metrics.items()}
        # Losses are those of all processes already, scales and weights the same in each.
        norms = {name: value for name, value in metrics.items() if name.startswith("norm/")}
        metrics |= self.processes.mean(norms, len(batch["text"]))
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._batches += 1
        if trainer.global_step == self._step:
            return  # more batches to come before the optimizer steps
        self._step = trainer.global_step
        steps = trainer.max_steps
        row = {name: total / self._batches for name, total in self._sums.items()}
        self._sums, self._batches = {}, 0
        row["gradient_norm"] = self._norm
        row["learning_rate"] = _rate_of_last_step(trainer)
        due = self._step % self.every == 0 or self._step == steps
        best, losses = False, {}
        if due and self.validation is not None:
            losses = validate(trainer, pl_module, self.validation)
            row |= {f"val_{name}": value for name, value in losses.items()}
            best = self.processes.as_first(losses["loss_total"] < self.best)
            self.best = min(self.best, losses["loss_total"])
        self.seconds = time.monotonic() - self._began
        row["seconds"] = self.seconds
        if self.journal is not None:
            self.journal.write(self._step, row)
        if self.progress is not None:
            self.progress(self._step, steps, row)
        # Asked once: a Ctrl-C that comes after this is met after the next step, not half met now.
        stopping = self.processes.any(self.interruption.requested)
        if due or stopping:
            if self.journal is not None:
                self.journal.flush()
            self._refuse_non_finite(trainer, clip, losses)
            self._save(trainer, best)
        if stopping and self._step < steps:
            stop = TrainingInterrupted(
                f"stopped after step {self._step} of {steps}; continue with: "
                f"clipseq train --resume {self.folder.root}"
            )
            if self.processes.size > 1:
                set_origin(stop, 0, here=self.processes.first)
            raise stop

    def _refuse_non_finite(
        self, trainer: Trainer, clip: torch.nn.Module, losses: Mapping[str, float]
    ) -> None:
        """Raise rather than save over a good checkpoint what no run can go on from."""
        found = [name for name, p in clip.named_parameters() if not bool(p.isfinite().all())]
        found = [f"the weights {some(found)} are not finite"] if found else []
        for name, value in losses.items():
            if not math.isfinite(value):
                found.append(f"the validation {name} is {value}")
        if found:
            raise exploded(trainer, f"after step {self._step} {' and '.join(found)}")

    def _save(self, trainer: Trainer, best: bool) -> None:
        # `last` knows of this `best`: left first, it would keep a resumed run from leaving `best`.
        for path, wanted in ((self.folder.best, best), (self.folder.last, True)):
            if wanted:
                # Written beside it and moved: a kill in the middle leaves the previous one whole.
                partial = path.with_suffix(".partial")
                trainer.save_checkpoint(partial)  # the first process writes, all wait for it
                if self.processes.first:
                    os.replace(partial, path)


def validate(
    trainer: Trainer, module: LightningModule, batches: "DataLoader[Any]"
) -> dict[str, float]:
    """Mean of each loss over the validation batches, in eval mode; leaves the mode as it was.

    Each process brings its rows of each batch; the losses are those of the whole batches.
    """
    clip: Any = module.clip
    training = clip.training
    sums: dict[str, float] = {}
    clip.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            for index, batch in enumerate(batches):
                moved = trainer.strategy.batch_to_device(batch)
                clip.training_step(moved, index)
                for name, value in clip.metrics.items():
                    if name.startswith("loss_"):
                        sums[name] = sums.get(name, 0.0) + float(value)
    finally:
        clip.train(training)
    return {name: total / len(batches) for name, total in sums.items()}


def _rate_of_last_step(trainer: Trainer) -> float:
    # The schedule has already moved on to the next step when a batch ends.
    scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
    factor = scheduler.lr_lambdas[0]
    return float(scheduler.base_lrs[0] * factor(trainer.global_step - 1))
