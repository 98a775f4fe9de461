"""A small finished run, and a process whose settings are unusual."""

import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from clipseq import CLIP
from clipseq.config import structure
from clipseq.data import MapDataset, simulate
from clipseq.engine.process_state import restored
from clipseq.training import RunConfig, train

SHARES = {"train": 0.5, "val": 0.2, "test": 0.2, "zeroshot": 0.1}
MODEL = {
    "transformer_width": 8,
    "transformer_layers": 1,
    "transformer_heads": 2,
    "context_length": 48,
    "encoder_cfg": {"patch_frames": 8, "dropout": 0.1},
}


def run_config(out: Path, data: Path, **training) -> RunConfig:
    options = {"out": str(out), "max_steps": 2, "batch_size": 4, "accelerator": "cpu"}
    table = {
        "data": {"path": str(data)},
        "model": MODEL,
        "tokenizer": {"kind": "word"},
        "training": options | {"warmup_steps": 1, "checkpoint_every": 1} | training,
    }
    return structure(RunConfig, table)


@attrs.frozen
class World:
    """Folders of a data set and of a run that is finished, and what is in them."""

    data: Path
    run: Path
    dataset: MapDataset
    model: CLIP

    def config(self, out: Path, **training) -> RunConfig:
        return run_config(out, self.data, **training)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    dataset = simulate(folder / "data", clips=30, seconds=5.0, split_shares=SHARES)
    model = train(run_config(folder / "run", folder / "data"))
    return World(folder / "data", folder / "run", dataset, model)


@pytest.fixture
def unusual(unchecked_signatures, tmp_path, monkeypatch) -> Iterator[None]:
    """A process with settings of its own, so that a call that sets the usual ones is seen.

    The checks of signatures are off, since they draw from Python's random numbers.
    """
    with restored():
        torch.manual_seed(1234)
        np.random.seed(1234)  # noqa: NPY002
        random.seed(1234)
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
        np.seterr(over="raise")
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.chdir(tmp_path)
        logging.root.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "a filter of the user's own")
        # A warning about determinism is expected here, and is not what the tests are about.
        warnings.filterwarnings("ignore", ".*deterministic.*")
        yield
