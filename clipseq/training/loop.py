"""The training loop: step, validate, log, save, stop."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from clipseq.data import MapDataset
from clipseq.encoders.eval_mode import eval_mode
from clipseq.errors import set_origin
from clipseq.evaluation.validation import validation_metrics
from clipseq.model import CLIP
from clipseq.training.checkpoint import Checkpoint, write_checkpoint
from clipseq.training.config import TrainingConfig
from clipseq.training.folder import RunFolder
from clipseq.training.journal import Journal
from clipseq.training.launch.interruption import (
    Interruption,
    TrainingInterrupted,
    is_gone,
)
from clipseq.training.launch.processes import Processes
from clipseq.training.nonfinite import (
    NonFiniteLoss,
    exploded,
    non_finite_clips,
    non_finite_state,
    some,
)
from clipseq.training.optimizer import parameter_groups, warmup_cosine
from clipseq.training.schedule import Schedule
from clipseq.training.selection import Selection

if TYPE_CHECKING:
    from lightning.fabric import Fabric

VALIDATED_AT_ONCE = 64
"""Number of clips that are encoded together for the validation metrics."""

Progress = Callable[[int, int, Mapping[str, float]], None]
"""A callback for each optimizer step: the step, the number of steps, and the step's metrics."""


def run_steps(
    model: CLIP,
    batches: Iterable[dict[str, Any]],
    validation: "DataLoader[Any] | None",
    validated: MapDataset | None,
    *,
    schedule: Schedule,
    clips: str,
    checkpoint: Checkpoint | None,
    options: TrainingConfig,
    folder: RunFolder,
    fabric: "Fabric",
    processes: Processes,
    journal: Journal | None,
    interruption: Interruption,
    progress: Progress | None,
) -> None:
    """Train `model` up to the last step of `schedule`, from its start or from `checkpoint`.

    The order of events in a step is fixed, so that a resumed run continues the interrupted one:
    a checkpoint of step k holds the state after step k and its validation, and the row of step k
    is written to the journal before it. Every process of the run is in this loop, and all stop
    after the same step; only the first one writes.

    Args:
        model: a CLIP, with the weights of `checkpoint` if there is one.
        batches: this process's rows of the batches, from the first one after `checkpoint` on.
        validation: this process's rows of the validation batches; None: do not validate.
        validated: the validation clips, for retrieval metrics.
        schedule: the optimizer steps of the whole run.
        clips: the digest of the training clips, for checkpoints.
        checkpoint: the state to continue from; None for a new run.
        options: the [training] table of the run's configuration.
        folder: the run folder, for checkpoints.
        fabric: moves the model to its device, and wraps it in DDP if several processes train.
        processes: the processes of the run.
        journal: receives a row per optimizer step; None in every process except the first.
        interruption: checked after each step for a request to stop.
        progress: called after each step. If the reader of what it writes has gone, the run
            stops with a checkpoint.

    Raises:
        NonFiniteLoss: the loss, a gradient or a weight is not finite; nothing is saved then.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP reached one of the processes before the last
            step, or the reader of `progress` has gone.
    """
    step_module = fabric.setup_module(_TrainingStep(model))
    autocast, scaler = mixed_precision(options.precision, fabric.device, warn=processes.first)
    groups = parameter_groups(model, options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    done, seconds = 0, 0.0
    selection = Selection(options.monitor)
    if checkpoint is not None:
        done, seconds = checkpoint["global_step"], checkpoint["seconds"]
        selection = Selection.resume(options.monitor, checkpoint["best"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        # The checkpoint holds its own weight decay, but that of the configuration is used.
        for group, configured in zip(optimizer.param_groups, groups, strict=True):
            group["weight_decay"] = configured["weight_decay"]

    steps = schedule.steps
    began = time.monotonic() - seconds
    upcoming = iter(batches)
    for step in range(done + 1, steps + 1):
        if selection.is_over(options.patience):
            break
        processes.doing = f"in step {step} of {steps}"
        rate = options.learning_rate * warmup_cosine(
            schedule.place(step - 1), warmup=options.warmup_steps, total=schedule.place(steps)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate

        # Step: the mean gradient of `accumulate` batches.
        sums: dict[str, float] = {}
        for part in range(options.accumulate):
            batch_index = schedule.place(step - 1) * options.accumulate + part
            batch = fabric.to_device(next(upcoming))
            seed_dropout(options.seed, batch_index, processes.rank)
            # DDP averages over processes only with the last batch.
            is_last = part + 1 == options.accumulate
            with fabric.no_backward_sync(step_module, enabled=not is_last):
                with autocast():
                    loss = _loss(step_module, batch, batch_index, model.names)
                _refuse_non_finite_loss(loss, step, batch, processes)
                scaler.scale(loss / options.accumulate).backward()
            for name, value in _metrics(model, len(batch["ids"]), processes).items():
                sums[name] = sums.get(name, 0.0) + value
        scaler.unscale_(optimizer)
        norm = float(clip_grad_norm_(parameters, options.gradient_clip or math.inf))
        # A loss scaler skips a step whose gradient overflows, and tries a smaller scale.
        if not math.isfinite(norm) and not scaler.is_enabled():
            raise exploded(
                f"the gradient of step {step} has norm {norm} though its loss is finite", processes
            )
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

        # Validate.
        row = {name: total / options.accumulate for name, total in sums.items()}
        row |= {"gradient_norm": norm, "learning_rate": rate}
        due = step % options.checkpoint_every == 0 or step == steps
        losses: dict[str, float] = {}
        is_best = False
        if due and validation is not None:
            with autocast():
                losses = validate(model, validation, fabric)
            metrics = dict(losses)
            # The others wait; the first alone writes the metrics, and decides.
            if processes.first and all(map(math.isfinite, losses.values())):
                assert validated is not None
                at_once = options.micro_batch or VALIDATED_AT_ONCE
                metrics |= validation_metrics(model, validated, batch_size=at_once)
            row |= {f"val_{name}": value for name, value in metrics.items()}
            is_best = processes.as_first(options.monitor in metrics and selection.improves(metrics))
            selection = selection.after(step, metrics.get(options.monitor), improved=is_best)

        # Log.
        seconds = time.monotonic() - began
        row["seconds"] = seconds
        if journal is not None:
            journal.write(step, row)
        if progress is not None:
            try:
                progress(step, steps, row)
            except (OSError, ValueError) as error:
                if not is_gone(error):
                    raise
                interruption.request(f"its progress cannot be shown ({error})")

        # Save. Signals are read once: a later one is handled after the next step.
        stopping = processes.any(interruption.requested)
        if due or stopping:
            if journal is not None:
                journal.flush()
            if found := non_finite_state(model, losses):
                raise exploded(f"after step {step} {found}", processes)
            if processes.first:
                state: Checkpoint = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "global_step": step,
                    "best": attrs.asdict(selection),
                    "seconds": seconds,
                    "epochs": schedule.epochs(step),
                    "clips": clips,
                }
                # `last` records the best validation: if `best` came second, a kill between the two
                # would leave a run that never writes its best weights.
                if is_best:
                    write_checkpoint(state, folder.best)
                write_checkpoint(state, folder.last)
            processes.meet()  # no process stops before the checkpoint is on disk

        # Stop.
        if stopping and step < steps:
            stop = TrainingInterrupted(
                f"stopped after step {step} of {steps}{interruption.reason}; "
                f"continue with: {folder.resume_command}"
            )
            if processes.size > 1:
                set_origin(stop, 0, here=processes.first)
            raise stop


class _TrainingStep(nn.Module):
    """A CLIP whose forward is its training step, because DDP hooks into forward only."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Any], batch_index: int) -> Tensor:
        return self.model.training_step(batch, batch_index)


def mixed_precision(
    precision: str, device: torch.device, *, warn: bool = True
) -> tuple[Callable[[], torch.autocast], torch.amp.GradScaler]:
    """Return the autocast and the loss scaler of a precision; both do nothing for "32-true".

    The CPU has no "16-mixed": it takes "bf16-mixed" instead, with a warning.
    """
    if precision == "16-mixed" and device.type == "cpu":
        if warn:
            warnings.warn(
                "training.precision must be '32-true' or 'bf16-mixed' on the CPU, got '16-mixed' "
                "(fp16 is not supported on CPU); using 'bf16-mixed'",
                stacklevel=2,
            )
        precision = "bf16-mixed"
    autocast = partial(
        torch.autocast,
        device.type,
        dtype=torch.float16 if precision == "16-mixed" else torch.bfloat16,
        enabled=precision != "32-true",
        # The cache would reuse a weight that was cast under no_grad, as in the first pass of
        # micro-batches, without a gradient.
        cache_enabled=False,
    )
    return autocast, torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")


def seed_dropout(seed: int, batch_index: int, rank: int) -> None:
    """Make the dropout of a batch depend only on seed, batch and rank.

    A resumed run then draws the same numbers. Torch's CPU generator uses 32 bits of its seed;
    ranks are spread over them.
    """
    torch.manual_seed(seed * 1_000_003 + batch_index + rank * 2_654_435_761)


def validate(model: CLIP, batches: "DataLoader[Any]", fabric: "Fabric") -> dict[str, float]:
    """Return the mean of each loss over the validation batches, in eval mode.

    Each process brings its rows of each batch; the losses are those of the whole batches. The
    mode of each module is restored.
    """
    sums: dict[str, float] = {}
    with eval_mode(model), torch.no_grad():
        for index, batch in enumerate(batches):
            model.training_step(fabric.to_device(batch), index)
            for name, value in model.metrics.items():
                if name.startswith("loss_"):
                    sums[name] = sums.get(name, 0.0) + float(value)
    return {name: total / len(batches) for name, total in sums.items()}


def _loss(
    step_module: nn.Module, batch: Mapping[str, Any], index: int, names: tuple[str, str]
) -> Tensor:
    try:
        loss: Tensor = step_module(batch, index)
    except ValueError as error:
        # CLIP's error gives the position in the batch; the batch has the ids of the clips.
        bad = non_finite_clips(batch, names)
        if bad:
            raise NonFiniteLoss(f"{error}; the clips: {some(bad)}") from error
        raise
    return loss


def _refuse_non_finite_loss(
    loss: Tensor, step: int, batch: Mapping[str, Any], processes: Processes
) -> None:
    if not torch.isfinite(loss):
        whose = f"clips of rank {processes.rank}" if processes.size > 1 else "clips"
        raise exploded(
            f"the loss of step {step} is {loss.item()} though its maps are finite; "
            f"{whose}: {some(batch['ids'])}",
            processes,
        )


def _metrics(model: CLIP, clips: int, processes: Processes) -> dict[str, float]:
    """Return the metrics of the last training step, the same in every process.

    Losses already cover all processes, and scales and weights are the same in each; only the
    feature norms are averaged here.
    """
    metrics = {name: float(value) for name, value in model.metrics.items()}
    norms = {name: value for name, value in metrics.items() if name.startswith("norm/")}
    return metrics | processes.mean(norms, clips)
