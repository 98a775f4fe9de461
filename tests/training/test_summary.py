"""The report before a run: what was found, and what will be done."""

from pathlib import Path

import numpy as np
import pytest

from clipseq.data import Clip, MapDataset
from clipseq.errors import ConfigError
from clipseq.training import DataConfig, RunConfig, TrainingConfig, plan, read_config, train
from clipseq.training.config import TokenizerConfig
from clipseq.training.summary import Lengths, SideSummary

MODEL = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}


def clip(number: int, frames: int, caption: str, split: str = "train") -> Clip:
    return Clip(
        id=f"clip{number}",
        signal={"mel": np.zeros((5, frames), np.float32)},
        caption=caption,
        split=split,
        sources=(f"{split}{number}",),
    )


@pytest.fixture
def dataset() -> MapDataset:
    clips = [
        clip(0, 10, "one two"),
        clip(1, 11, "two"),
        clip(2, 20, "two one two one"),
        clip(3, 7, "one Six seven six", split="test"),
        clip(4, 8, "one", split="test"),
    ]
    return MapDataset.from_clips(clips, modality="audio")


def config(folder: Path, **training) -> RunConfig:
    options = {"out": folder / "run", "max_steps": 2, "batch_size": 2, "accelerator": "cpu"}
    return RunConfig(
        data=DataConfig(path=Path("unused")),
        model={**MODEL, "encoder_cfg": {"patch_frames": 5}, "sequence_similarity_weight": 0.75},
        tokenizer=TokenizerConfig(kind="word"),
        training=TrainingConfig(**{**options, **training}),
    )


def test_a_plan_reports_what_is_there_and_writes_nothing(dataset, tmp_path):
    summary = plan(config(tmp_path), dataset=dataset)
    assert summary.clips == {"train": 3, "test": 2}
    audio, text = summary.sides
    assert audio == SideSummary(
        "audio", frames=Lengths(10, 11, 20), steps=Lengths(2, 3, 4), views={"mel": 5}
    )
    # [PAD], [UNK], one, two
    assert text == SideSummary("text", steps=Lengths(1, 2, 4), vocabulary=4)
    assert summary.unknown == {"test": ("six", "seven")}
    assert (summary.similarity, summary.weight) == ("combined", 0.75)
    assert (summary.device, summary.precision, summary.processes) == ("cpu", "32-true", 1)
    assert (summary.batch_size, summary.batches_per_epoch, summary.steps) == (2, 1, 2)
    assert summary.out == tmp_path / "run"
    assert list(tmp_path.iterdir()) == []
    text = summary.as_text()
    assert text.startswith("clips:           3 train, 2 test\n")
    assert "10 to 20 (median 11) frames; 2 to 4 (median 3) steps; views mel (5)\n" in text
    assert "2 words that the training captions lack, all read as one token: six, seven\n" in text
    assert summary.to_json()["sides"][0]["frames"] == {"least": 10, "median": 11, "most": 20}


def test_a_run_begins_with_the_same_report(dataset, tmp_path):
    reports = []
    model = train(config(tmp_path), dataset=dataset, started=reports.append)
    trained = plan(config(tmp_path, out=tmp_path / "other"), dataset=dataset)
    assert reports[0].parameters == sum(p.numel() for p in model.parameters())
    assert reports[0].clips == trained.clips
    assert reports[0].sides == trained.sides
    assert reports[0].done == 0
    train(config(tmp_path, max_steps=3), dataset=dataset, resume=True, started=reports.append)
    assert (reports[1].done, reports[1].steps) == (2, 3)


def test_a_plan_raises_what_the_run_would(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="exists and would be overwritten"):
        plan(config(tmp_path), dataset=dataset)
    with pytest.raises(ConfigError, match="accelerator"):
        plan(config(tmp_path, out=tmp_path / "new", devices=3, accelerator="gpu"), dataset=dataset)


CONFIG = """
[data]
path = "clips"
[training]
out = "runs/a"
max_steps = 5
"""


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("training.max_steps=7", lambda c: c.training.max_steps, 7),
        ("training.learning_rate=2e-3", lambda c: c.training.learning_rate, 2e-3),
        ("training.out=runs/b", lambda c: c.training.out.name, "b"),
        ('training.out="runs/c = d"', lambda c: c.training.out.name, "c = d"),
        (
            "model.encoder_cfg.patch_frames=4",
            lambda c: c.model,
            {"encoder_cfg": {"patch_frames": 4}},
        ),
        (
            "model.sequence_similarity_options.window=[6, 1]",
            lambda c: c.model["sequence_similarity_options"],
            {"window": [6, 1]},
        ),
        ("model.use_siglip=true", lambda c: c.model["use_siglip"], True),
        (" tokenizer.kind = word", lambda c: c.tokenizer.kind, "word"),
    ],
)
def test_an_override_replaces_a_value(override, read, expected, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    assert read(read_config(path, [override])) == expected


def test_the_last_override_counts(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    twice = ["training.max_steps=7", "training.max_steps=9"]
    assert read_config(path, twice).training.max_steps == 9


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training.max_step=7",
            r"with training.max_step=7: unknown key .*did you mean 'max_steps'",
        ),
        ("training.max_steps=many", "training.max_steps must be int or None, got 'many'"),
        (
            "training.max_steps",
            "an override must be key=value, such as .*, got 'training.max_steps'",
        ),
        ("=3", "an override must be key=value"),
        ("training..seed=3", "an override must be key=value"),
        ("training.seed.deep=3", "training.seed must be int, got"),
        ("data.path.deep=3", "data.path must be a table to set data.path.deep, got 'clips'"),
    ],
)
def test_a_wrong_override_is_named(override, said, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    with pytest.raises(ConfigError, match=said):
        read_config(path, [override])
