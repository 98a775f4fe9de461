"""Wrong arguments are errors that name the argument, from clipseq itself and not from torch."""

import numpy as np
import pytest
import torch

import clipseq
from clipseq import CLIP, ClipLoss, ConfigError, SigLipLoss, get_similarity
from clipseq.encoders import ByteTokenizer, SignalConfig, train_tokenizer
from clipseq.training.config import DataConfig, TrainingConfig, read_config
from clipseq.training.launch.processes import layout

X, P, R = torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 6, 9)
SMALL = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}


def model(**options):
    options = {"sequence_similarity_type": "local"} | SMALL | options
    return CLIP({"views": {"a": 6}}, **options)


MODEL = model()
NESTED = torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged)

REFUSED = {
    "no feature": (lambda: ClipLoss()(P[:, :0], P[:, :0]), "x must have at least one feature"),
    "array": (lambda: get_similarity("attention", temperature=np.ones(2)), "temperature must be"),
    "True gamma": (lambda: get_similarity("temporal", gamma=True), "gamma must be"),
    "NaN gamma": (lambda: get_similarity("temporal", gamma=float("nan")), "gamma must be"),
    "True band": (lambda: get_similarity("temporal", band=True), "band must be"),
    "string": (lambda: get_similarity("temporal", gamma="0.1"), "gamma must be"),
    "NaN bias": (lambda: SigLipLoss(init_bias=float("nan")), "init_bias must be a finite number"),
    "infinite bias": (lambda: SigLipLoss(init_bias=np.float32("inf")), "init_bias must be"),
    "tensor": (lambda: ClipLoss(init_scale=torch.ones(2)), "init_scale must be a number"),
    "complex": (lambda: ClipLoss(init_scale=1j), "init_scale must be a number"),
    "groups": (lambda: ClipLoss()(P, P, torch.tensor([1j, 2j])), "groups must be 2 integers"),
    "temperature": (lambda: ClipLoss(temperature=0.07), "'temperature': init_scale is 1 / temp"),
    "loss option": (
        lambda: SigLipLoss(init_bais=0),
        "'init_bais': did you mean 'init_bias'[?] opt",
    ),
    "kind": (lambda: clipseq.SequenceLoss(get_similarity("local"), ClipLoss), "kind must be"),
    "CLIP option": (lambda: CLIP(transfomer_layers=1), "did you mean 'transformer_layers'[?] opt"),
    "tokenizer": (lambda: model(tokenizer="bpe"), "tokenizer must be an object .*train_tokenizer"),
    "class": (lambda: model(tokenizer=ByteTokenizer), "tokenizer must be an object"),
    "embed_dim": (
        lambda: model(sequence_similarity_options={"embed_dim": 4}),
        "embed_dim must be 8, the transformer_width",
    ),
    "embed_dim of a part": (
        lambda: model(
            sequence_similarity_type="combined",
            sequence_similarity_options={"parts": {"local": {"embed_dim": 4}}},
        ),
        "embed_dim of local must be 8",
    ),
    "int key": (lambda: MODEL.training_step({1: 2, "radar": R}), "the key 'text', got 1, radar"),
    "misspelt key": (
        lambda: MODEL.training_step({"rader": R, "text": ["a", "b"]}),
        "the key 'radar', got rader, text; rename the key 'rader'",
    ),
    "surrogate": (
        lambda: MODEL.training_step({"radar": R, "text": ["\ud800", "b"]}),
        "text caption 0 must be Unicode",
    ),
    "lengths of str": (
        lambda: MODEL.training_step({"radar": R, "text": ["a", "b"], "radar_lengths": "ab"}),
        "radar_lengths must be whole numbers",
    ),
    "float lengths": (
        lambda: MODEL.training_step({"radar": R, "text": ["a", "b"], "radar_lengths": [3.0, 2.0]}),
        "radar_lengths must be whole numbers",
    ),
    "weight": (lambda: setattr(MODEL, "sequence_similarity_weight", "0.5"), "must be float"),
    "micro_batch": (lambda: setattr(MODEL, "micro_batch", True), "micro_batch must be a positive"),
    "sparse": (lambda: get_similarity("local")(X.to_sparse(), X), "x must be a dense tensor"),
    "sparse pooled": (lambda: ClipLoss()(P.to_sparse(), P), "x must be a dense tensor"),
    "nested": (lambda: get_similarity("local")(NESTED, X), "x must be a dense .* nested"),
    "meta": (lambda: get_similarity("local", embed_dim=4).to("meta")(X, X), "got cpu"),
    "vocab_size": (lambda: train_tokenizer(["a"], "300"), "vocab_size must be a whole number"),
    "captions": (lambda: train_tokenizer(["a", 3]), "caption 1 must be a string, got 3"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_an_error_names_the_argument(call, message, unchecked_signatures):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert not isinstance(caught.value, UnicodeError)
    assert "?;" not in str(caught.value)


def test_the_integers_of_numpy_are_taken(unchecked_signatures):
    MODEL.micro_batch = np.int64(2)
    assert MODEL.micro_batch == 2
    MODEL.micro_batch = None
    config = SignalConfig(views={"a": np.int64(6)}, patch_frames=np.int32(4))
    assert (config.views, config.patch_frames) == ({"a": 6}, 4)
    assert type(config.views["a"]) is type(config.patch_frames) is int
    assert float(get_similarity("temporal", gamma=np.float32(0.5)).gamma) == 0.5


TEXT = '[data]\npath = {path}\n[training]\nout = "runs/a"\nmax_steps = 3\n'


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TEXT.format(path='"mine"'), encoding="utf-8-sig")
    assert read_config(path).training.max_steps == 3


def test_a_path_with_backslashes_is_explained(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TEXT.format(path=r'"C:\Users\me"'))
    with pytest.raises(ConfigError, match="in single quotes, or with forward slashes"):
        read_config(path)
    path.write_text("[data" * 2)
    with pytest.raises(ConfigError, match="is not valid TOML") as caught:
        read_config(path)
    assert "single quotes" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": 2**32}, "seed must be at most 4294967295"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"epochs": 10**30, "max_steps": None}, "epochs must be at most"),
        ({"max_steps": 2**31}, "max_steps must be at most"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0"),
        ({"gradient_clip": float("inf")}, "gradient_clip must be finite"),
        ({"learning_rate": float("inf")}, "learning_rate must be greater than 0 and finite"),
        ({"learning_rate": "fast"}, "learning_rate must be float, got 'fast'"),
        ({"threads": 10**6}, "threads must be at most 4096"),
        ({"num_workers": 10**6}, "num_workers must be at most 4096"),
        ({"timeout": 10**30}, "timeout must be at most"),
        ({"batch_size": "8"}, "batch_size must be int, got '8'"),
        ({"batch_size": True}, "batch_size must be int, got True"),
        ({"out": 5}, "out must be a path, got 5"),
    ],
)
def test_a_value_that_would_fail_late_is_refused(option, message, unchecked_signatures):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**({"out": "runs/a", "max_steps": 3} | option))


def test_paths_may_be_strings(unchecked_signatures):
    assert TrainingConfig(out="runs/a", max_steps=3).out.name == "a"
    assert DataConfig(path="mine").path.name == "mine"
    with pytest.raises(ConfigError, match="seed must be at most"):
        DataConfig(path="mine", seed=2**40)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "-2", "LOCAL_RANK": "0"},
        {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "0"},
        {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    ],
)
def test_a_launcher_with_wrong_numbers_is_refused(environment, monkeypatch, unchecked_signatures):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="RANK must come with what torchrun sets, got"):
        layout(TrainingConfig(out="runs/a", max_steps=3))
