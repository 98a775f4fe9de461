"""A data set small enough to train on in a test, and the configuration of such a run."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from clipseq.config import structure
from clipseq.data import MapDataset, simulate
from clipseq.training import RunConfig

SHARES = {"train": 0.5, "val": 0.2, "test": 0.2, "zeroshot": 0.1}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MapDataset:
    folder = tmp_path_factory.mktemp("clips") / "data"
    return simulate(folder, clips=30, seconds=5.0, split_shares=SHARES)


def small_config(
    folder: Path, out: str = "run", model: dict[str, Any] | None = None, **training: Any
) -> RunConfig:
    """Return the configuration of a run that trains a tiny model in a folder within `folder`."""
    tiny = {
        "transformer_width": 8,
        "transformer_layers": 1,
        "transformer_heads": 2,
        "context_length": 48,
        "encoder_cfg": {"patch_frames": 8, "dropout": 0.1},
    }
    options = {
        "out": str(folder / out),
        "max_steps": 6,
        "batch_size": 4,
        "accelerator": "cpu",
        "warmup_steps": 2,
        "checkpoint_every": 2,
    }
    return structure(
        RunConfig,
        {
            "data": {"path": "given by the test"},
            "model": tiny | (model or {}),
            "tokenizer": {"kind": "word"},
            "training": options | training,
        },
    )


@pytest.fixture
def small_run(tmp_path: Path):
    """`small_run(max_steps=4, model={...})`: a RunConfig of a tiny model in a new folder."""
    return partial(small_config, tmp_path)


@pytest.fixture(scope="session")
def small_run_in():
    """`small_run_in(folder, max_steps=4)`: the same in a folder of the caller's."""
    return small_config


@pytest.fixture
def in_float64():
    """Compute in float64 by default.

    In float32, AdamW takes steps even along a gradient that is mere rounding error, such as that of
    the bias of a softmax's keys.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
