"""The optimizer: which parameters decay, and the learning rate over a run."""

import math

import pytest
import torch

from clipseq import CLIP
from clipseq.training.optimizer import parameter_groups, warmup_cosine


def test_norms_biases_scales_and_weights_do_not_decay():
    model = CLIP(
        {"views": {"doppler_time": 8}, "patch_frames": 2},
        transformer_width=8,
        transformer_layers=1,
        transformer_heads=2,
        context_length=16,
    )
    decay, keep = parameter_groups(model, 0.3)
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.3, 0.0)
    kept = {id(p) for p in keep["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in kept}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.endswith(("bias", "eot"))
        or ("norm" in name or ".1.weight" in name)  # a LayerNorm's gain
        or "log_" in name  # scales, mixing weights, attention's temperature
    }
    assert names == expected
    count = len(list(model.parameters()))
    assert len(decay["params"]) + len(keep["params"]) == count


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    decay, keep = parameter_groups(model, 0.1)
    assert decay["params"] == []
    assert keep["params"] == [model.bias]


def test_warmup_then_cosine_to_zero():
    factors = [warmup_cosine(step, warmup=4, total=12) for step in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0, abs=1e-15)
    assert factors[6] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert warmup_cosine(0, warmup=0, total=1) == 1.0
