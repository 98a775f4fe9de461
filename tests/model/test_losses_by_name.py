"""The losses of a model by their registered names: built, saved with their origin, loaded."""

import json
import re

import pytest
import torch

from clipseq import (
    CLIP,
    CheckpointError,
    ClipLoss,
    PairLoss,
    SigLipLoss,
    SignalConfig,
    UnknownLossError,
    register_loss,
)
from clipseq.registry import lookup

SIGNAL = SignalConfig(views={"a": 3}, patch_frames=2)
BATCH = {"radar": torch.ones(2, 3, 6), "text": ["walks", "sits"]}


def make(**options):
    torch.manual_seed(0)
    size = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
    return CLIP(SIGNAL, sequence_similarity_type="global", **size, **options)


class Hinge(PairLoss):
    """A stand-in for a plugin's loss: a hinge over all pairs."""

    def __init__(self, *, init_scale: float = 3.0, margin: float = 0.5):
        super().__init__(init_scale=init_scale)
        self.margin = margin

    def loss(self, scores, positives):
        signed = torch.where(positives.mask, scores, -scores)
        return (self.margin - self.scale * signed).relu().mean()

    def metrics(self, batch):
        return {**super().metrics(batch), "margin": torch.tensor(self.margin)}


def test_both_losses_are_the_one_named(fresh_registry):
    register_loss("hinge", Hinge)
    model = make(loss="hinge", loss_options={"margin": 0.25}, temperature=0.5)
    assert isinstance(model.clip_loss_fn, Hinge)
    assert isinstance(model.sequence_loss_fn.pair_loss, Hinge)
    assert model.clip_loss_fn is not model.sequence_loss_fn.pair_loss
    assert model.clip_loss_fn.scale.item() == pytest.approx(2.0)  # 1 / temperature
    model.training_step(BATCH).backward()
    assert model.metrics["margin"] == model.metrics["seq_margin"] == 0.25


def test_use_siglip_is_shorthand():
    short, long = make(use_siglip=True), make(loss="siglip")
    assert isinstance(short.clip_loss_fn, SigLipLoss)
    assert torch.equal(short.training_step(BATCH), long.training_step(BATCH))
    assert isinstance(make().clip_loss_fn, ClipLoss)
    assert make(loss="siglip", loss_options={"init_bias": -2.0}).clip_loss_fn.bias(2) == -2


def test_an_explicit_scale_comes_before_the_temperature():
    assert make(loss_options={"init_scale": 5.0}).clip_loss_fn.scale.item() == pytest.approx(5)
    model = make(loss_options={"max_scale": 500.0}, temperature=0.004)
    assert model.clip_loss_fn.scale.item() == pytest.approx(250)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"loss": "sigllip"}, UnknownLossError, "did you mean 'siglip'"),
        ({"loss_options": {"init_bias": 0.0}}, TypeError, "option of the loss 'siglip'"),
        ({"loss": "hinge", "use_siglip": True}, ValueError, "loss must be 'siglip'"),
        ({"loss": 3}, ValueError, "loss must be str, got 3"),
    ],
)
def test_a_loss_that_does_not_exist_or_fit(options, error, match, unchecked_signatures):
    with pytest.raises(error, match=match):
        make(**options)


def test_it_is_saved_with_its_origin_and_all_its_options(tmp_path, fresh_registry):
    register_loss("hinge", Hinge)
    model = make(loss="hinge").eval()
    with torch.no_grad():
        model.clip_loss_fn.log_scale.fill_(1.0)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["losses"] == {"hinge": {"distribution": "this process", "version": ""}}
    assert config["model"]["loss"] == "hinge"
    assert config["model"]["loss_options"] == {"margin": 0.5}  # the scale is in the weights
    again = CLIP.from_pretrained(tmp_path)
    assert isinstance(again.sequence_loss_fn.pair_loss, Hinge)
    assert torch.equal(again.training_step(BATCH), model.training_step(BATCH))


def test_a_loss_that_is_missing_is_named(tmp_path, fresh_registry, monkeypatch):
    register_loss("hinge", Hinge)
    make(loss="hinge").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["losses"]["hinge"] = {"distribution": "clipseq-hinge", "version": "1.2"}
    path.write_text(json.dumps(config))
    monkeypatch.setattr(lookup, "_registry", lookup.Registry())
    match = re.escape("the loss 'hinge' of clipseq-hinge 1.2: install it")
    with pytest.raises(CheckpointError, match=match) as error:
        CLIP.from_pretrained(tmp_path)
    assert "clipseq.register_loss" in str(error.value)


def test_another_version_of_the_loss_is_logged(tmp_path, caplog):
    make(use_siglip=True).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["losses"]["siglip"]["version"] = "0.0.1"
    path.write_text(json.dumps(config))
    CLIP.from_pretrained(tmp_path)
    assert "'siglip' of clipseq 0.0.1" in caplog.text
