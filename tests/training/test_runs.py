"""Finished runs and saved models are evaluated on their own data or on another data set."""

import numpy as np
import pytest

from clipseq import CLIP
from clipseq.data import Clip, write_dataset
from clipseq.errors import CheckpointError, ConfigError, DataError
from clipseq.training.runs import evaluate_run

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    clips = [
        Clip(
            id=str(i),
            signal={"mel": rng.normal(size=(4, 12)).astype(np.float32)},
            paired={"joints": rng.normal(size=(6, 20)).astype(np.float32)},
            split="test",
        )
        for i in range(4)
    ]
    return write_dataset(tmp_path / "pairs", clips, modality="audio", paired_modality="motion")


def test_a_model_that_does_not_fit_the_data_is_refused_with_both_names(tmp_path, pairs):
    CLIP({"views": {"mel": 4}}, **SIZE).save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match=r"\(radar, text\), got audio, motion without 'radar'"):
        evaluate_run(tmp_path / "model", pairs)
    assert not (tmp_path / "model" / "evaluation.json").exists()


def test_missing_models_and_data_are_refused(tmp_path):
    CLIP({"views": {"mel": 4}}, **SIZE).save_pretrained(tmp_path / "model")
    with pytest.raises(
        CheckpointError, match="data must be a data set for a model without a run, got None"
    ):
        evaluate_run(tmp_path / "model")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigError, match="run must be a run folder or a saved model, got"):
        evaluate_run(run)
    (run / "config.toml").write_text("")
    with pytest.raises(CheckpointError, match="run must be finished, .*clipseq train --resume"):
        evaluate_run(run)
