"""A data set small enough to train on in a test, and the configuration of such a training."""

from pathlib import Path
from typing import Any

import pytest

from clipseq.config import structure
from clipseq.data import MapDataset, simulate
from clipseq.training import RunConfig

SHARES = {"train": 0.5, "val": 0.2, "test": 0.2, "zeroshot": 0.1}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MapDataset:
    folder = tmp_path_factory.mktemp("clips") / "data"
    return simulate(folder, clips=30, seconds=5.0, split_shares=SHARES)


@pytest.fixture
def small_run(tmp_path: Path):
    """`small_run(max_steps=4, model={...})`: a RunConfig of a tiny model in a fresh folder."""

    def make(out: str = "run", model: dict[str, Any] | None = None, **training: Any) -> RunConfig:
        tiny = {
            "transformer_width": 8,
            "transformer_layers": 1,
            "transformer_heads": 2,
            "context_length": 48,
            "encoder_cfg": {"patch_frames": 8, "dropout": 0.1},
        }
        options = {
            "out": str(tmp_path / out),
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

    return make
