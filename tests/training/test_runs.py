"""Finished runs and saved models are evaluated on their own data or on another data set."""

import json

import attrs
import numpy as np
import pytest

from clipseq import CLIP
from clipseq.data import Clip, MapDataset, write_dataset
from clipseq.errors import CheckpointError, ConfigError, DataError
from clipseq.evaluation import evaluate
from clipseq.training import DataConfig, RunFolder, train
from clipseq.training.runs import evaluate_run

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}


def pair(i, caption=""):
    rng = np.random.default_rng(i)
    return Clip(
        id=str(i),
        signal={"mel": rng.normal(size=(4, 12 + i)).astype(np.float32)},
        paired={"joints": rng.normal(size=(6, 20 - i)).astype(np.float32)},
        caption=caption,
        split="test" if i % 2 else "train",
    )


NAMES = {"modality": "audio", "paired_modality": "motion"}


@pytest.fixture
def pairs(tmp_path):
    return write_dataset(tmp_path / "pairs", [pair(i) for i in range(8)], **NAMES)


def test_a_saved_model_of_two_signals_is_evaluated(tmp_path, pairs):
    model = CLIP(
        {"name": "audio", "views": {"mel": 4}, "patch_frames": 4},
        {"tower": "signal", "name": "motion", "views": {"joints": 6}, "patch_frames": 4},
        **SIZE,
    )
    model.save_pretrained(tmp_path / "model")
    found, path = evaluate_run(tmp_path / "model", pairs)
    assert found.to_json() == evaluate(model, MapDataset(pairs)).to_json()
    assert json.loads(path.read_text()) == found.to_json()
    assert "motion to audio MRR" in found.own


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


def test_a_run_on_two_signals_takes_their_names_and_views_from_the_data(small_run, pairs):
    model = {
        "encoder_cfg": {"patch_frames": 4},
        "text_cfg": {"tower": "signal", "name": "motion", "patch_frames": 5},
    }
    config = small_run(model=model)
    config = attrs.evolve(config, data=DataConfig(path=pairs))
    model = train(config)
    assert model.names == ("audio", "motion")
    assert model.y_encoder.config.views == {"joints": 6}
    found, _ = evaluate_run(config.training.out)
    assert found.to_json() == evaluate(model, MapDataset(pairs)).to_json()


def test_a_run_on_captioned_pairs_may_take_either_signal(small_run):
    clips = [pair(i, f"caption {i % 3}") for i in range(8)]
    dataset = MapDataset.from_clips(clips, **NAMES)
    for name in ("audio", "motion"):
        model = train(small_run(name, model={"encoder_cfg": {"name": name}}), dataset=dataset)
        assert model.names == (name, "text")
        assert f"text to {name} R@1" in evaluate(model, dataset, draws=5).own


@pytest.mark.parametrize(
    ("encoder", "caption", "message"),
    [
        ({}, "", "a model of audio and text, got audio and motion without captions"),
        ({"name": "audio"}, "", "a model of audio and text, got audio and motion without captions"),
        ({"name": "radar"}, "c", "audio, motion, got 'radar'"),
    ],
)
def test_a_run_that_does_not_fit_the_data_leaves_no_folder(small_run, encoder, caption, message):
    config = small_run(model={"encoder_cfg": encoder})
    dataset = MapDataset.from_clips([pair(i, caption) for i in range(8)], **NAMES)
    with pytest.raises((ConfigError, DataError), match=message):
        train(config, dataset=dataset)
    assert not RunFolder(config.training.out).config.exists()
