"""The lightning side of a training step: what lightning is told about a CLIP."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from clipseq.errors import ClipseqError, set_origin
from clipseq.model import CLIP
from clipseq.training.config import TrainingConfig
from clipseq.training.optimizer import parameter_groups, warmup_cosine


class NonFiniteLoss(ClipseqError, FloatingPointError):
    """NaN or infinity in the loss, a gradient or a weight: training stops and saves nothing."""


def exploded(trainer: Trainer, what: str) -> NonFiniteLoss:
    """The error that says so, the same in every process of the run; one tells it."""
    error = NonFiniteLoss(
        f"{what}. Lower training.learning_rate, lengthen training.warmup_steps, set "
        "training.gradient_clip, or use precision = '32-true'"
    )
    if trainer.world_size > 1:
        set_origin(error, 0, here=trainer.global_rank == 0)
    return error


class ClipTraining(LightningModule):
    """A CLIP with its optimizer and schedule; the losses are the CLIP's own `training_step`."""

    def __init__(self, clip: CLIP, config: TrainingConfig, steps: int) -> None:
        super().__init__()
        self.clip = clip
        self.config = config
        self.steps = steps

    def on_train_start(self) -> None:
        # A checkpoint brings along what the optimizer was told; what the run is told now counts.
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        schedule: Any = self.lr_schedulers()
        rate = self.config.learning_rate
        now = parameter_groups(self.clip, self.config.weight_decay)
        groups = zip(optimizer.param_groups, now, schedule.lr_lambdas, strict=True)
        for group, told, factor in groups:
            group["weight_decay"] = told["weight_decay"]
            group["initial_lr"], group["lr"] = rate, rate * factor(schedule.last_epoch)
        schedule.base_lrs = [rate for _ in now]

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        # Dropout of a step depends on seed, step and rank alone: a resumed run draws the same.
        # Torch's CPU generator takes 32 bits of it: ranks are spread over those.
        apart = self.global_rank * 2_654_435_761
        torch.manual_seed(self.config.seed * 1_000_003 + batch_idx + apart)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """loss_total of one batch; `self.clip.metrics` then holds its parts.

        Raises:
            NonFiniteLoss: naming the step and the clips whose input is at fault, or, where every
                input is finite, all clips of the batch.
        """
        try:
            loss: Tensor = self.clip.training_step(batch, batch_idx)
        except ValueError as error:
            # CLIP names the place in the batch; which clip that was, only the batch knows.
            bad = _clips_not_finite(batch)
            if bad:
                raise NonFiniteLoss(f"{error}; the clips: {some(bad)}") from error
            raise
        if not torch.isfinite(loss):
            whose = f"clips of rank {self.global_rank}" if self.trainer.world_size > 1 else "clips"
            raise exploded(
                self.trainer,
                f"the loss of step {self.trainer.global_step + 1} is {loss.item()} though its maps "
                f"are finite; {whose}: {some(batch.get('ids', []))}",
            )
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW over two groups of parameters; warm-up and cosine, step by step."""
        optimizer = torch.optim.AdamW(
            parameter_groups(self.clip, self.config.weight_decay),
            lr=self.config.learning_rate,
            betas=(0.9, 0.98),
        )
        factor = partial(warmup_cosine, warmup=self.config.warmup_steps, total=self.steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _clips_not_finite(batch: Mapping[str, Any]) -> list[str]:
    maps = batch["radar"].values() if isinstance(batch["radar"], Mapping) else [batch["radar"]]
    finite = torch.stack([view.flatten(1).isfinite().all(dim=1) for view in maps]).all(dim=0)
    names = batch.get("ids", range(len(finite)))
    return [str(name) for name, good in zip(names, finite.tolist(), strict=True) if not good]


def some(names: list[Any], at_most: int = 8) -> str:
    """So many of the names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
