"""A run's configuration is read from TOML and written back; errors name the key."""

from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq.errors import ConfigError
from clipseq.training.config import (
    DataConfig,
    RunConfig,
    SimulatedData,
    TokenizerConfig,
    TrainingConfig,
    read_config,
    write_config,
)

SMALLEST = """
[data]
path = "clips"
[training]
out = "run"
epochs = 2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_the_smallest_config_has_defaults_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(write(tmp_path, SMALLEST))
    assert config.data == DataConfig(path=tmp_path / "clips")
    assert config.training == TrainingConfig(out=tmp_path / "run", epochs=2)
    assert config.model == {}
    assert config.tokenizer == TokenizerConfig()


scalars = (
    st.integers(-5, 5)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
# What TOML cannot hold (a lone surrogate) cannot come from a TOML file.
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
tables = st.recursive(
    st.dictionaries(
        keys,
        scalars
        | st.lists(st.integers())
        | st.lists(st.dictionaries(keys, scalars, max_size=2), max_size=2),
        max_size=3,
    ),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@given(model=tables, motion=st.none() | st.just(Path("/recorded/motion.npz")))
def test_what_is_written_is_read_back(tmp_path_factory, model, motion):
    config = RunConfig(
        data=DataConfig(simulated=SimulatedData(clips=20, seed=3, motion=motion)),
        training=TrainingConfig(out=Path('/runs/it\'s "this"'), max_steps=7, learning_rate=1e-5),
        model=model,
    )
    path = tmp_path_factory.getbasetemp() / "written.toml"
    write_config(config, path)
    assert read_config(path) == config


def test_numbers_of_numpy_are_numbers(tmp_path):
    config = RunConfig(
        data=DataConfig(path=tmp_path),
        training=TrainingConfig(
            out=tmp_path / "run", max_steps=np.int64(7), learning_rate=np.float64(1e-3)
        ),
        model={"options": {"share": np.float32(0.5), "on": np.bool_(True)}},
    )
    write_config(config, tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"stages": [{"size": 1j}]}, r"model\.stages\.size must be .* got 1j \(complex\)"),
        ({"stages": [1, None]}, r"model\.stages must be .* got None"),
        ({"name": "\ud800"}, r"model\.name must be Unicode text, got '\\ud800'"),
        ({"parts": {3: "a"}}, r"a key of model\.parts must be a string, got 3"),
    ],
)
def test_what_toml_cannot_hold_is_named(tmp_path, model, said):
    config = RunConfig(
        data=DataConfig(path=tmp_path),
        training=TrainingConfig(out=tmp_path / "run", max_steps=7),
        model=model,
    )
    with pytest.raises(ConfigError, match=said):
        write_config(config, tmp_path / "config.toml")
    assert not (tmp_path / "config.toml").exists()


def test_a_pretrained_text_tower_is_found_from_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = SMALLEST + '[model.text_cfg]\npretrained = "bert"\n'
    config = read_config(write(tmp_path, text))
    assert config.model == {"text_cfg": {"pretrained": str(tmp_path / "bert")}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("epochs = 2", "epohcs = 2"), "training.epohcs': did you mean 'epochs'?"),
        (("epochs = 2", "epochs = '2'"), "training.epochs must be int or None, got '2'"),
        (("epochs = 2", "epochs = 0"), "training: epochs must be at least 1, got 0"),
        (("epochs = 2", ""), "must have either training.epochs or training.max_steps, got neither"),
        (("epochs = 2", "epochs = 2\nmax_steps = 3"), "training.max_steps, got both"),
        (("epochs = 2", "epochs = 2\nprecision = '16'"), "training.precision"),
        (("epochs = 2", "epochs = 2\nlearning_rate = 0"), "learning_rate must be greater than 0"),
        (
            ("epochs = 2", "epochs = 2\nlearning_rate = nan"),
            "greater than 0 and finite, got nan",
        ),
        (
            ("epochs = 2", "epochs = 2\nweight_decay = nan"),
            "weight_decay must be at least 0, got nan",
        ),
        (("epochs = 2", "epochs = 2\nlearning_rate = inf"), "greater than 0 and finite, got inf"),
        (("path = ", "pth = "), "data.pth': did you mean 'path'?"),
        (
            ('path = "clips"', ""),
            "must have exactly one of data.path, data.sim",
        ),
        (('path = "clips"', 'path = "a"\nradhar = "b"'), "got path and radhar"),
        (("[data]", "[dta]"), "'dta': did you mean 'data'?"),
        (("[data]", "[data"), "not valid TOML"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path, change, said):
    path = write(tmp_path, SMALLEST.replace(*change))
    with pytest.raises(ConfigError) as error:
        read_config(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config file .*nowhere\.toml"):
        read_config(tmp_path / "nowhere.toml")


def test_steps_come_from_epochs_or_are_given():
    training = TrainingConfig(out=Path("r"), epochs=3, accumulate=2)
    assert training.steps(batches_per_epoch=5) == 7
    assert TrainingConfig(out=Path("r"), max_steps=9).steps(5) == 9


@pytest.mark.parametrize("name", ["simulated", "radhar"])
def test_the_example_configs_are_valid(name):
    from clipseq.training.models import build_model, check_model_config

    path = Path(__file__).parents[2] / "docs" / "configs" / f"{name}.toml"
    if not path.exists():
        pytest.skip("tests run without the docs")
    config = read_config(path)
    check_model_config(config.model)
    model = build_model(config.model, {"doppler_time": 16}, None)
    assert model.config.transformer_width == config.model["transformer_width"]


def test_simulated_example_is_the_demo():
    from clipseq.demo import COMBINED, FULL, demo_configs

    path = Path(__file__).parents[2] / "docs" / "configs" / "simulated.toml"
    if not path.exists():
        pytest.skip("tests run without the docs")
    config, demo = read_config(path), demo_configs(Path("runs"), FULL)[COMBINED]
    assert config.model == demo.model
    assert config.tokenizer == demo.tokenizer
    assert config.data.simulated == SimulatedData(clips=FULL.clips)
    assert config.training == attrs.evolve(demo.training, out=config.training.out)
