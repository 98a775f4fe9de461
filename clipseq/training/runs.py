"""A finished run, read again: its model, its data, its evaluation."""

from pathlib import Path

import torch

from clipseq.errors import CheckpointError, ConfigError
from clipseq.evaluation import Evaluation, evaluate
from clipseq.model import CLIP
from clipseq.training.config import read_config
from clipseq.training.datasets import open_dataset, open_path
from clipseq.training.folder import RunFolder


def load_model(run: Path) -> CLIP:
    """The trained model of a run folder, or of a folder written by `CLIP.save_pretrained`.

    Raises:
        ConfigError: the folder holds neither.
        CheckpointError: the run is not finished, or what it saved is incomplete or corrupt.
    """
    folder = RunFolder(run)
    if (folder.model / "config.json").exists():
        return CLIP.from_pretrained(folder.model)
    if (run / "config.json").exists():
        return CLIP.from_pretrained(run)
    if folder.config.exists():
        raise CheckpointError(
            f"the run {run} is not finished; finish it with: clipseq train --resume {run}"
        )
    raise ConfigError(f"{run} is neither a run folder nor a saved model")


def evaluate_run(
    run: Path, data: Path | None = None, *, split: str = "test"
) -> tuple[Evaluation, Path]:
    """Evaluate a run, by default on its own data, and write evaluation.json into its folder.

    `data` may be a data set or a radhar .npz file, which is spliced as in training. Returns the
    evaluation and where it was written.
    """
    model = load_model(run).to("cuda" if torch.cuda.is_available() else "cpu")
    folder = RunFolder(run)
    if data is not None:
        dataset = open_path(data)
    elif folder.config.exists():
        dataset = open_dataset(read_config(folder.config).data, folder)
    else:
        raise CheckpointError(f"{run} is a model without a run: name the data set to evaluate on")
    evaluation = evaluate(model, dataset, split=split)
    evaluation.write(folder.evaluation)
    return evaluation, folder.evaluation
