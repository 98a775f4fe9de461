"""ModelConfig and CLIP's signature have the same options, and ModelConfig checks them."""

import inspect
import re

import attrs
import pytest
import torch
from torch import nn

from clipseq import CLIP, ConfigError, ModelConfig, SignalConfig, TextConfig
from clipseq.encoders import train_tokenizer


def test_clip_and_its_config_have_the_same_options():
    """They agree in names, order, defaults and types; an option that one of them lacks fails
    here."""
    parameters = list(inspect.signature(CLIP.__init__).parameters.values())[1:]
    fields = attrs.fields(ModelConfig)
    assert [p.name for p in parameters] == [field.name for field in fields]
    assert [p.default for p in parameters] == [field.default for field in fields]
    assert [p.annotation for p in parameters] == [field.type for field in fields]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


def test_clip_keeps_what_it_was_given():
    """Each option reaches the config: none is forgotten on the way."""
    tokenizer = train_tokenizer(["walks"], 300)
    given = {
        "encoder_cfg": SignalConfig(name="audio", views={"mel": 4}, patch_frames=2),
        "text_cfg": TextConfig(name="sentence", causal=False),
        "context_length": 9,
        "transformer_width": 8,
        "transformer_layers": 1,
        "transformer_heads": 2,
        "temperature": 0.5,
        "use_siglip": True,
        "loss": "siglip",
        "loss_options": {"init_bias": -2.0},
        "use_sequence_similarity": False,
        "sequence_similarity_type": "local",
        "sequence_similarity_weight": 0.25,
        "sequence_similarity_options": {"window": (2, 3)},
        "tokenizer": tokenizer,
    }
    assert set(given) == {field.name for field in attrs.fields(ModelConfig)}
    assert not {key for key, value in given.items() if value == getattr(ModelConfig(), key)}
    config = CLIP(**given).config
    assert {key: getattr(config, key) for key in given} == given


def test_a_table_comes_back():
    config = ModelConfig(
        TextConfig(name="query"),
        SignalConfig(views={"mel": 4}),
        sequence_similarity_options={"window": [2, 3]},
        loss="siglip",
        loss_options={"init_bias": 0.0},
    )
    assert ModelConfig.from_table(config.table()) == config


def test_the_key_tower_says_what_a_table_describes():
    config = ModelConfig({"tower": "text", "name": "query"}, {"tower": "signal", "views": {"a": 2}})
    assert config.encoder_cfg == TextConfig(name="query")
    assert config.text_cfg == SignalConfig(views={"a": 2})
    assert config.names == ("query", "radar")
    assert ModelConfig().encoder_cfg == SignalConfig()
    assert ModelConfig().text_cfg == TextConfig()


class Named(nn.Module):
    name = "motion"


class Unnamed(nn.Module):
    name = 3


def test_a_module_has_its_own_name_or_that_of_its_side():
    assert ModelConfig(Named(), Unnamed()).names == ("motion", "text")
    assert ModelConfig(Unnamed(), Named()).names == ("radar", "motion")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"encoder_cfg": {"name": "Radar"}}, "name must be lower-case .*got 'Radar'"),
        ({"encoder_cfg": {"name": "1d"}}, "got '1d'"),
        ({"text_cfg": {"name": "a-b"}}, "got 'a-b'"),
        ({"text_cfg": {"name": ""}}, "got ''"),
        ({"text_cfg": {"name": "radar"}}, "must differ, got 'radar' twice"),
        ({"text_cfg": SignalConfig()}, "must differ, got 'radar' twice"),
        ({"encoder_cfg": Named(), "text_cfg": Named()}, "must differ, got 'motion' twice"),
        ({"text_cfg": {"name": "radar_mask"}}, "each other's keys.*'radar' and 'radar_mask'"),
        ({"encoder_cfg": {"tower": "sginal"}}, r"encoder_cfg\.tower must be .*mean 'signal'"),
        ({"text_cfg": {"tower": 3}}, r"text_cfg\.tower must be 'signal' or 'text', got 3"),
    ],
)
def test_names_and_kinds_are_checked(options, match):
    with pytest.raises(ConfigError, match=match):
        ModelConfig(**options)


def test_a_module_whose_name_is_not_an_identifier():
    odd = Named()
    odd.name = "my motion"
    with pytest.raises(ConfigError, match="the name of encoder_cfg must be .*got 'my motion'"):
        ModelConfig(odd)


def test_siglip_by_either_option_is_the_same_and_contradictions_are_refused():
    assert ModelConfig(use_siglip=True).loss == "siglip"
    assert ModelConfig(use_siglip=True, loss="siglip").loss == "siglip"
    assert ModelConfig().loss == "clip"
    with pytest.raises(ValueError, match="loss must be 'siglip' if use_siglip.*got 'other'"):
        ModelConfig(use_siglip=True, loss="other")


def test_a_table_is_checked_as_strictly_as_a_signature():
    for table, match in (
        ({"temprature": 1.0}, r"unknown key 'model\.temprature': did you mean 'temperature'"),
        ({"text_cfg": {"causl": True}}, r"'model\.text_cfg\.causl'"),
        ({"context_length": True}, r"model\.context_length must be int"),
        ({"tokenizer": "word"}, r"unknown key 'model\.tokenizer'"),
        ({"temperature": -1.0}, "model: temperature must be finite"),
        ([], "model must be a table"),
    ):
        with pytest.raises(ConfigError, match=match):
            ModelConfig.from_table(table, where="model")


def test_it_is_frozen_and_the_weight_of_a_model_is_checked_when_it_changes():
    model = CLIP(SignalConfig(views={"a": 2}), transformer_width=8, transformer_heads=2)
    model.sequence_similarity_weight = 0.25
    assert model.config.sequence_similarity_weight == 0.25
    with pytest.raises(ValueError, match=re.escape("must lie in [0, 1], got 2.0")):
        model.sequence_similarity_weight = 2.0
    assert model.sequence_similarity_weight == 0.25
    model.training_step({"radar": torch.randn(2, 2, 40), "text": ["a", "b"]})
    mixed = 0.75 * model.metrics["loss_clip"] + 0.25 * model.metrics["loss_seq"]
    torch.testing.assert_close(model.metrics["loss_total"], mixed)
