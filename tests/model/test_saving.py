"""A saved model is loaded bit by bit or an error says what is wrong; a save never loses data."""

import json
import os
import subprocess
import sys

import attrs
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clipseq import (
    CLIP,
    CheckpointError,
    Sequences,
    SignalConfig,
    TextConfig,
    get_similarity,
    register_similarity,
)
from clipseq.encoders import train_tokenizer
from clipseq.model import saving
from clipseq.registry import lookup

VIEWS = {"range_time": 5, "doppler_time": 3}
CAPTIONS = ["a person walks", "a person sits"]
RADAR = {name: torch.randn(2, bins, 9, generator=torch.Generator()) for name, bins in VIEWS.items()}


def make(seed=0, **options):
    torch.manual_seed(seed)
    options = {
        "context_length": 20,
        "transformer_width": 16,
        "transformer_layers": 1,
        "transformer_heads": 2,
        "sequence_similarity_type": "global",
        **options,
    }
    radar = options.pop(
        "encoder_cfg", SignalConfig(views=VIEWS, patch_frames=4, fusion="attention")
    )
    model = CLIP(radar, options.pop("text_cfg", TextConfig(causal=False)), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def assert_same(one, other):
    assert list(one.state_dict()) == list(other.state_dict())
    for name, value in one.state_dict().items():
        assert other.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(other.state_dict()[name], value), name
    assert torch.equal(one.similarity(RADAR, CAPTIONS), other.similarity(RADAR, CAPTIONS))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_sequence_similarity": False},
        {"sequence_similarity_type": "combined", "sequence_similarity_weight": 0.3},
        {"sequence_similarity_type": "local", "sequence_similarity_options": {"window": (2, 3)}},
        {"use_siglip": True, "temperature": 0.5},
        {"tokenizer": train_tokenizer(CAPTIONS, 300)},
        {"tokenizer": train_tokenizer(CAPTIONS, 300, kind="word")},
        {"encoder_cfg": SignalConfig(views=VIEWS, patch_frames=3, dropout=0.1)},
    ],
)
def test_it_comes_back_bit_by_bit(options, tmp_path):
    model = make(**options)
    model.save_pretrained(tmp_path / "model")
    before = torch.get_rng_state()
    again = CLIP.from_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(model, again)
    assert not again.training
    assert again.x_encoder.config == model.x_encoder.config
    assert again.y_encoder.config == model.y_encoder.config
    for name in ("temperature", "use_siglip", "sequence_similarity_weight", "context_length"):
        assert getattr(again.config, name) == getattr(model.config, name)
    batch = {"radar": RADAR, "text": CAPTIONS}
    assert torch.equal(model.training_step(batch), again.eval().training_step(batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_comes_back_in_its_own_dtype(dtype, tmp_path):
    model = make().to(dtype)
    model.save_pretrained(tmp_path)
    assert_same(model, CLIP.from_pretrained(tmp_path))


def test_what_lies_in_the_folder(tmp_path):
    make(
        sequence_similarity_type="combined",
        sequence_similarity_options={"parts": {"global": {}, "local": {"window": 2}}},
        tokenizer=train_tokenizer(CAPTIONS, 300),
    ).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"]["sequence_similarity_type"] == "combined"
    options = config["model"]["sequence_similarity_options"]
    assert options["parts"]["global"] == {"pool": "mean", "embed_dim": None}
    assert options["parts"]["local"] == {
        "window": 2,
        "stride": 1,
        "direction": "both",
        "embed_dim": None,
    }
    assert options["weights"] == {"global": 0.1, "local": 0.5}
    assert set(config["similarities"]) == {"combined", "global", "local"}
    assert config["similarities"]["local"]["distribution"] == "clipseq"
    assert config["similarities"]["local"]["version"] == config["clipseq_version"]


Global = type(get_similarity("global"))


class Extra(Global):
    """A stand-in for a third party's plugin."""


def test_a_plugin_that_is_installed_later_changes_no_checkpoint(tmp_path, fresh_registry):
    model = make(sequence_similarity_type="combined")
    model.save_pretrained(tmp_path)
    register_similarity("extra", Extra)
    again = CLIP.from_pretrained(tmp_path)
    assert "extra" in make(sequence_similarity_type="combined").sequence_loss_fn.similarity_fn.parts
    assert_same(model, again)


@pytest.mark.parametrize("name", ["extra", "combined"])
def test_a_plugin_that_is_missing_is_named(name, tmp_path, fresh_registry, monkeypatch):
    register_similarity("extra", Extra)
    make(sequence_similarity_type=name).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["similarities"]["extra"] = {"distribution": "clipseq-extra", "version": "2.1"}
    path.write_text(json.dumps(config))
    monkeypatch.setattr(lookup, "_registry", lookup.Registry())
    with pytest.raises(CheckpointError, match=r"'extra' of clipseq-extra 2\.1: install it"):
        CLIP.from_pretrained(tmp_path)


def test_a_plugin_that_is_disabled_is_not_said_to_be_missing(tmp_path, fresh_registry, monkeypatch):
    make(sequence_similarity_type="combined").save_pretrained(tmp_path)
    monkeypatch.setattr(lookup, "_registry", lookup.Registry())
    monkeypatch.setenv("CLIPSEQ_DISABLE", "attention,local")
    with pytest.raises(CheckpointError) as caught:
        CLIP.from_pretrained(tmp_path)
    message = str(caught.value)
    assert ", which CLIPSEQ_DISABLE leaves out; the similarity 'local' of clipseq " in message
    assert message.endswith(": take attention, local out of CLIPSEQ_DISABLE, and load again")
    assert "install it" not in message


def test_a_part_whose_options_do_not_fit_is_named(tmp_path):
    make(sequence_similarity_type="combined").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_heads": 2', '"num_heads": 0'))
    with pytest.raises(CheckpointError, match="; raised by the part 'attention' of clipseq "):
        CLIP.from_pretrained(tmp_path)


def test_another_version_of_a_plugin_is_logged(tmp_path, caplog):
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["similarities"]["global"]["version"] = "0.0.1"
    path.write_text(json.dumps(config))
    CLIP.from_pretrained(tmp_path)
    assert "'global' of clipseq 0.0.1" in caplog.text


def test_weights_that_do_not_fit_are_listed(tmp_path):
    make().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights.pop("y_encoder.eot")
    weights["more"] = torch.zeros(1)
    weights["x_encoder.eot"] = torch.zeros(8)
    save_file(weights, path)
    with pytest.raises(CheckpointError) as caught:
        CLIP.from_pretrained(tmp_path)
    for part in (
        "model.safetensors do not fit",
        "missing: y_encoder.eot",
        "unexpected: more",
        "x_encoder.eot (must be (16,), got (8,))",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_or_cut_off_file_is_named(name, tmp_path):
    make(tokenizer=train_tokenizer(CAPTIONS, 300)).save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{name} is corrupt"):
        CLIP.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        CLIP.from_pretrained(tmp_path)


def withhold(path):
    path.chmod(0)


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(
            withhold,
            "Permission denied",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file"),
        ),
        (replace_by_a_folder, "Is a directory"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_cannot_be_read_is_not_called_corrupt(name, damage, reason, tmp_path):
    make(tokenizer=train_tokenizer(CAPTIONS, 300)).save_pretrained(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: {reason}"):
        CLIP.from_pretrained(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_who_may_read_one_file_may_read_all(umask, tmp_path):
    before = os.umask(umask)
    try:
        make(tokenizer=train_tokenizer(CAPTIONS, 300)).save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(
        ["README.md", "config.json", "model.safetensors", "tokenizer.json"], 0o666 & ~umask
    )


def test_a_config_that_is_not_ours(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"unknown key 'model_type'"):
        CLIP.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a directory written by save_pretrained"):
        CLIP.from_pretrained(tmp_path / "nowhere")


def test_an_option_that_the_installed_plugin_does_not_take(tmp_path):
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"pool"', '"pooling"'))
    with pytest.raises(CheckpointError, match="no option 'pooling'"):
        CLIP.from_pretrained(tmp_path)


@pytest.mark.parametrize("step", range(7))
def test_an_interrupted_save_loses_nothing(step, tmp_path, monkeypatch):
    """The save is interrupted while writing (step 0), or at one of the moves after that."""
    tokenizer = train_tokenizer(CAPTIONS, 300)
    old = make(tokenizer=tokenizer)
    old.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    calls = []

    def interrupt(real):
        def call(*arguments, **options):
            calls.append(real)
            if len(calls) == max(step, 1):
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if step == 0:
            patch.setattr(saving, "save_file", interrupt(save_file))
        else:
            patch.setattr(os, "replace", interrupt(os.replace))
        with pytest.raises(KeyboardInterrupt):
            make(seed=1, tokenizer=tokenizer).save_pretrained(tmp_path)
    assert calls
    assert_same(old, CLIP.from_pretrained(tmp_path))
    assert len(list(tmp_path.iterdir())) == 5
    new = make(seed=2)
    new.save_pretrained(tmp_path)
    assert_same(new, CLIP.from_pretrained(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]


def test_a_second_interrupt_leaves_the_old_files_somewhere(tmp_path, monkeypatch):
    old = make()
    old.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    real, calls = os.replace, []

    def replace(*arguments):
        calls.append(arguments)
        if len(calls) >= 3:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            make(seed=1).save_pretrained(tmp_path)
    assert weights in [path.read_bytes() for path in tmp_path.rglob("model.safetensors")]


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 16)
        self.tied = self.linear

    def forward(self, values):
        return Sequences.from_tensor(self.linear(values.mT))


def test_a_module_as_tower_is_asked_for(tmp_path):
    model = make(encoder_cfg=Own())
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"Own, which only you can build.*encoder_cfg="):
        CLIP.from_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path, encoder_cfg=Own())
    radar = torch.randn(2, 5, 9)
    assert torch.equal(again(radar, CAPTIONS)[0], model(radar, CAPTIONS)[0])
    assert again.x_encoder.module.tied.weight is again.x_encoder.module.linear.weight
    with pytest.raises(ValueError, match=r"text_cfg must be None.*leave it out"):
        CLIP.from_pretrained(tmp_path, encoder_cfg=Own(), text_cfg=Own())


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize(
    "options",
    [
        {"transformer_width": np.int64(16), "temperature": np.float32(0.1)},
        {"use_siglip": np.bool_(True), "temperature": np.float64(0.1)},
        {"sequence_similarity_weight": np.float32(0.3), "temperature": 1},
        {
            "sequence_similarity_type": "attention",
            "sequence_similarity_options": {"temperature": np.float32(0.1)},
        },
        {
            "sequence_similarity_type": "combined",
            "sequence_similarity_options": {
                "parts": {"temporal": {"gamma": np.float32(0.3)}, "global": {}},
                "weights": {"global": np.float32(0.7)},
            },
        },
    ],
)
def test_a_model_built_from_numbers_of_numpy_comes_back(options, tmp_path):
    model = make(**options)
    model.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path)
    assert_same(model, again)
    for name in ("temperature", "use_siglip", "transformer_width", "sequence_similarity_weight"):
        assert getattr(again.config, name) == options.get(name, getattr(model.config, name))


class Odd(Global):
    """An option that no file can hold, and one whose default is numpy's."""

    def __init__(self, *, thing: object = None, size: object = np.float32(0.5)):
        super().__init__()


def test_an_option_that_json_cannot_hold(tmp_path, fresh_registry):
    register_similarity("odd", Odd)
    make(sequence_similarity_type="odd").save_pretrained(tmp_path)
    model = make(sequence_similarity_type="odd", sequence_similarity_options={"thing": object()})
    with pytest.raises(
        ValueError,
        match=r"^sequence_similarity_options\.thing must be .* JSON can represent, got <object ",
    ):
        model.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path)
    assert again.config.sequence_similarity_options == {"thing": None, "size": 0.5}


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        (
            "combined",
            {"parts": {"odd": {"thing": [1, 2j]}}},
            r"parts\.odd\.thing\.1 must be .*got 2j \(complex\)",
        ),
        ("odd", {"thing": {"x": float("inf")}}, r"options\.thing\.x must be .*got inf \(float\)"),
        ("odd", {"thing": {(1, 2): 3}}, r"options\.thing must be .*got {\(1, 2\): 3} \(dict\)"),
    ],
)
def test_what_json_cannot_hold_is_named_however_deep(
    name, options, match, tmp_path, fresh_registry
):
    register_similarity("odd", Odd)
    model = make(sequence_similarity_type=name, sequence_similarity_options=options)
    with pytest.raises(ValueError, match=match):
        model.save_pretrained(tmp_path)


def test_the_options_of_a_model_are_frozen_so_what_is_saved_is_what_was_checked():
    model = make()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        model.config.temperature = torch.tensor(0.5)


def test_options_may_be_numbers_of_numpy(tmp_path, unchecked_signatures):
    parts = {"local": {"window": np.int64(3)}, "temporal": {"gamma": np.float32(0.5)}}
    options = {"parts": parts, "weights": {"local": np.float32(0.25)}}
    model = make(sequence_similarity_type="combined", sequence_similarity_options=options)
    model.save_pretrained(tmp_path)
    again = CLIP.from_pretrained(tmp_path)
    assert again.sequence_loss_fn.similarity_fn.parts["local"].window == (3, 3)
    assert again.sequence_loss_fn.similarity_fn.parts["temporal"].gamma == 0.5
    assert again.config.sequence_similarity_options["weights"]["local"] == 0.25


def test_push_to_hub_uploads_what_save_writes(tmp_path, monkeypatch):
    uploads = []

    class Hub:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, folder_path, repo_id, commit_message, **_):
            uploads.append((repo_id, commit_message, self.token))
            for path in folder_path.iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    model = make()
    address = model.push_to_hub("me/radar", commit_message="first", token="t")
    assert address == "https://huggingface.co/me/radar/commit/1"
    assert uploads == [("me/radar", "first", "t")]
    assert_same(model, CLIP.from_pretrained(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert "library_name: clipseq" in card
    assert 'CLIP.from_pretrained("me/radar")' in card


def test_push_to_hub_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"clipseq\[hf\]"):
        make().push_to_hub("me/radar")


@pytest.mark.slow
def test_the_model_is_imported_without_the_extras():
    code = (
        "import sys; import clipseq.model, clipseq.model.saving; "
        "print([m for m in ('huggingface_hub', 'transformers', 'tokenizers', 'lightning') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
