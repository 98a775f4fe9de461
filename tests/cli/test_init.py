"""`clipseq init` writes configurations that are complete, valid, and equal to the defaults."""

import re
import tomllib
from pathlib import Path

import attrs
import pytest

from clipseq import CLIP, SignalConfig, TextConfig
from clipseq.cli.init import config_kinds, config_text, write_config_file
from clipseq.config import structure
from clipseq.encoders.config import Lora
from clipseq.errors import ConfigError
from clipseq.model import ModelConfig
from clipseq.training import RunConfig, SimulatedData, TrainingConfig, read_config
from clipseq.training.config import DataConfig, TokenizerConfig

KINDS = ["audio", "imu", "motion", "radar", "two_signals"]

SET = re.compile(r"^(# )?(\w+) =", re.MULTILINE)
HEADING = re.compile(r"^(?:# )?\[([\w.]+)\]$", re.MULTILINE)


def keys_by_table(text: str) -> dict[str, list[str]]:
    """Return the keys of each table, set or not, in the order of the file."""
    pieces = HEADING.split(text)[1:]
    tables = zip(pieces[::2], pieces[1::2], strict=True)
    return {table: [name for _, name in SET.findall(body)] for table, body in tables}


def test_these_kinds_exist():
    assert list(config_kinds()) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_every_table_is_there_once(kind):
    def names(cls, *, without=()):
        return {field.name for field in attrs.fields(cls)} - set(without)

    two = kind == "two_signals"
    second = SignalConfig if two else TextConfig
    towers = {"tokenizer", "encoder_cfg", "text_cfg", "sequence_similarity_options"}
    expected = {
        "data": names(DataConfig, without=["simulated"]),
        "data.simulated": names(SimulatedData),
        "model": names(ModelConfig, without=towers),
        "model.encoder_cfg": names(SignalConfig, without=["name", "views"]),
        "model.text_cfg": names(second, without=["name", "views", "vocab_size", "lora"]),
        **({} if two else {"model.text_cfg.lora": names(Lora)}),
        "model.sequence_similarity_options": set(),
        "tokenizer": names(TokenizerConfig),
        "training": {
            field.name for field in attrs.fields(TrainingConfig) if not attrs.has(field.type)
        },
    }
    found = keys_by_table(config_text(kind))
    for table, keys in expected.items():
        assert sorted(set(found[table]) - {"tower"}) == sorted(keys), table
        assert len(set(found[table])) == len(found[table]), table


@pytest.mark.parametrize("kind", KINDS)
def test_the_values_are_those_of_the_kind(kind):
    written = structure(RunConfig, tomllib.loads(config_text(kind)))
    kept = structure(RunConfig, tomllib.loads(config_kinds()[kind]))
    assert attrs.evolve(written, model={}) == attrs.evolve(kept, model={})
    assert {name: value for name, value in written.model.items() if value != {}} == kept.model


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_shown_are_the_defaults(kind):
    text = config_text(kind)
    lines, on = [], True
    for line in text.splitlines():
        if HEADING.match(line):
            # Tables that are off by default would be on as empty ones; [data] holds a table.
            line = line.replace("# [data]", "[data]")
            on = line.startswith("[")
        lines.append(re.sub(r"^# (?=\w+ = (?!\s*#))", "", line) if on else line)
    shown = "\n".join(lines)
    assert shown != text
    kept = tomllib.loads(text)
    full = structure(RunConfig, tomllib.loads(shown))
    plain = structure(RunConfig, kept)
    assert attrs.evolve(full, model={}) == attrs.evolve(plain, model={})
    for config in (full, plain):  # training takes the names of signals from the data set
        if kind == "two_signals":
            config.model["text_cfg"]["name"] = "motion"
    assert ModelConfig.from_table(full.model) == ModelConfig.from_table(plain.model)


def test_a_default_of_clip_shows():
    assert '\n# sequence_similarity_type = "combined"\n' in config_text("audio")
    assert "largest number of tokens of a caption" in (CLIP.__doc__ or "")
    assert "\n## Largest number of tokens of a caption.\n" in config_text("audio")


def test_an_unknown_kind_is_named():
    with pytest.raises(
        ConfigError, match="KIND must be one of audio, .*, got 'radra': did you mea"
    ):
        config_text("radra")


def test_a_file_is_never_overwritten(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="FILE must be a new file, got .*mine.toml, which exists"):
        write_config_file("radar", path)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_config_file("radar", tmp_path / "none" / "mine.toml")


def test_what_is_written_can_be_read(tmp_path: Path):
    write_config_file("radar", tmp_path / "radar.toml")
    config = read_config(tmp_path / "radar.toml")
    assert config.data.simulated == SimulatedData(clips=3000)
    assert config.training.max_steps == 320
