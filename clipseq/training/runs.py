"""Finished runs: their model, their data, and their evaluation."""

import shlex
from pathlib import Path
from typing import Literal, get_args

import torch

from clipseq.data import MapDataset
from clipseq.engine.files import write_text
from clipseq.engine.options import to_path
from clipseq.errors import CheckpointError, ConfigError, DataError, suggest
from clipseq.evaluation import Evaluation, evaluate, html_report
from clipseq.model import CLIP, Explanation
from clipseq.model.card import write_metrics
from clipseq.model.saved import CONFIG
from clipseq.training.config import read_config
from clipseq.training.curves import chance_loss, read_curves
from clipseq.training.datasets import open_dataset, open_path
from clipseq.training.folder import RunFolder

Checkpoint = Literal["best", "last"]
"""The model of the best validation, or that of the last step."""


def load_model(run: str | Path, checkpoint: Checkpoint = "best") -> CLIP:
    """Return a model of a run folder, or that of a folder written by `CLIP.save_pretrained`.

    Args:
        run: the folder.
        checkpoint: "best" or "last". A run without validation has one model, which is both.

    Raises:
        ValueError: another checkpoint, or "last" for a folder that is not of a run.
        ConfigError: the folder is neither of these.
        CheckpointError: the run is not finished, or its model is incomplete or corrupt.
    """
    if not isinstance(checkpoint, str) or checkpoint not in get_args(Checkpoint):
        raise ValueError(f"checkpoint must be 'best' or 'last', got {checkpoint!r}")
    run = to_path("run", run)
    folder = RunFolder(run)
    if checkpoint == "last" and (folder.model_last / "config.json").exists():
        return CLIP.from_pretrained(folder.model_last)
    if (folder.model / "config.json").exists():
        return CLIP.from_pretrained(folder.model)
    if (run / "config.json").exists():
        if checkpoint == "last":
            raise ValueError(
                f"checkpoint must be 'best' for a saved model, got 'last' for {run}; omit it"
            )
        return CLIP.from_pretrained(run)
    if folder.config.exists():
        raise CheckpointError(
            f"run must be finished, got {run}, which is not; "
            f"finish it with: clipseq train --resume {shlex.quote(str(run))}"
        )
    raise ConfigError(f"run must be a run folder or a saved model, got {run}")


def open_data(run: Path, data: Path | None) -> MapDataset:
    """Open `data`, or, if it is None, the data set that the run was trained on.

    Raises:
        CheckpointError: `data` is None for a model without a run.
        DataError: a file is missing or corrupt.
    """
    folder = RunFolder(run)
    if data is not None:
        return open_path(data)
    if folder.config.exists():
        return open_dataset(read_config(folder.config).data, folder)
    raise CheckpointError(
        f"data must be a data set for a model without a run, got None for {run}; "
        "name the data set too"
    )


def explain_run(
    run: Path, data: Path | None = None, *, clip: str, caption: str | None = None
) -> Explanation:
    """Explain one clip of a data set with the model of a run.

    Args:
        run: a run folder, or a folder written by `CLIP.save_pretrained`.
        data: a data set, as in `evaluate_run`.
        clip: the id of the clip.
        caption: the text to compare it with; None: the clip's other side.

    Raises:
        ConfigError: `run` is neither of these.
        CheckpointError: the run is not finished, or `data` is None for a model without a run.
        DataError: the data set has no such clip.
        ValueError: the model does not compare sequences; see `CLIP.explain`.
    """
    model = load_model(run)
    dataset = open_data(run, data)
    ids = dataset.ids
    if clip in ids:
        return model.explain(dataset[ids.index(clip)], caption)
    raise DataError(
        f"clip must be the id of a clip, such as {', '.join(map(repr, ids[:3]))}, got {clip!r}"
        f"{suggest(clip, ids)}"
    )


def evaluate_run(
    run: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "test",
    checkpoint: Checkpoint = "best",
    report: str | Path | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a run, and write evaluation.json or evaluation-last.json into its folder.

    Args:
        run: a run folder, or a folder written by `CLIP.save_pretrained`.
        data: a data set, or a radhar .npz file, which is spliced as in training. None: the data
            set that the run was trained on.
        split: name of the split to evaluate on.
        checkpoint: the model to evaluate, "best" or "last"; see `load_model`.
        report: file to write a page of HTML into, see `html_report`.

    Returns:
        The evaluation, and the path that it was written to. Its metrics are also written into the
        model card, unless its owner has removed the place for them.

    Raises:
        ValueError: there is no such checkpoint.
        ConfigError: `run` is neither of these.
        CheckpointError: the run is not finished, or `data` is None for a model without a run.
        DataError: a file is missing or corrupt, or the data set lacks a modality of the model.
    """
    run = to_path("run", run)
    data = None if data is None else to_path("data", data)
    report = None if report is None else to_path("report", report)
    model = load_model(run, checkpoint).to(_device())
    folder, dataset = RunFolder(run), open_data(run, data)
    evaluation = evaluate(model, dataset, split=split)
    path = folder.evaluation_last if checkpoint == "last" else folder.evaluation
    evaluation.write(path)
    if report is not None:
        write_text(report, _html(evaluation, model, dataset, folder))
    last = [folder.model_last] if checkpoint == "last" else []
    for saved in (*last, folder.model, run):
        if (saved / CONFIG).exists():
            _write_metrics(saved, evaluation, None if data is None else data.name)
            break
    return evaluation, path


def _device() -> str:
    """Return the device that `accelerator = "auto"` trains on."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _html(evaluation: Evaluation, model: CLIP, dataset: MapDataset, folder: RunFolder) -> str:
    curves = read_curves(folder.metrics) if folder.metrics.exists() else None
    chance = None
    if folder.config.exists():
        config = read_config(folder.config)
        training = dataset.splits.get("train", config.training.batch_size)
        chance = chance_loss(config.model, min(config.training.batch_size, training))
    title = f"Evaluation of {folder.root.resolve().name}"
    return html_report(evaluation, model, dataset, title=title, curves=curves, chance=chance)


def _write_metrics(saved: Path, evaluation: Evaluation, data: str | None) -> None:
    """Put the metrics of the score that the model uses into its card."""
    rows = [["metric", "value", "95 % interval", "chance"]]
    for name, metric in evaluation.own.items():
        estimate = metric.estimate
        interval = f"{estimate.low:.3f} to {estimate.high:.3f}"
        chance = "" if metric.chance is None else f"{metric.chance:.3f}"
        rows.append([name, f"{estimate.value:.3f}", interval, chance])
    source = "the training data set" if data is None else f"`{data}`"
    write_metrics(
        saved,
        rows,
        f"On the {evaluation.clips} clips of the split `{evaluation.split}` of {source}, scored by "
        f"{evaluation.similarity}. The intervals are bootstrapped over the clips.",
    )
