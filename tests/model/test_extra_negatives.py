"""Captions under `text_negatives` are extra negatives of a training step."""

import pytest
import torch

from clipseq import CLIP, SignalConfig

TEXT = ["sits, then walks", "walks, then sits", "waves"]
NEGATIVES = ["waves, then waves", "walks, then sits"]


@pytest.fixture
def model() -> CLIP:
    return CLIP(
        SignalConfig(views={"a": 3}, patch_frames=2),
        transformer_width=8,
        transformer_layers=1,
        transformer_heads=2,
        sequence_similarity_type="local",
        sequence_similarity_weight=0.5,
        sequence_similarity_options={"window": 1},
    )


def test_both_losses_see_the_extra_negatives(model):
    radar = torch.randn(3, 3, 8)
    loss = model.training_step({"radar": radar, "text": TEXT, "text_negatives": NEGATIVES})
    metrics = dict(model.metrics)
    x, y, x_steps, y_steps = model(radar, [*TEXT, *NEGATIVES], return_sequences=True)
    _, _, x_mask, y_mask = model.encode_sequences(radar, [*TEXT, *NEGATIVES], return_masks=True)
    groups = torch.tensor([0, 1, 2, 3, 1])  # the last is a positive of the second
    pooled = model.clip_loss_fn(x, y, groups)
    sequences = model.sequence_loss_fn(x_steps, y_steps, x_mask, y_mask, groups)
    torch.testing.assert_close(metrics["loss_clip"], pooled)
    torch.testing.assert_close(metrics["loss_seq"], sequences)
    torch.testing.assert_close(loss, (pooled + sequences) / 2)
    without = model.training_step({"radar": radar, "text": TEXT})
    assert loss > without


def test_extra_negatives_are_a_list_of_captions(model, unchecked_signatures):
    batch = {"radar": torch.randn(3, 3, 8), "text": TEXT, "text_negatives": "waves"}
    with pytest.raises(TypeError, match="'text_negatives' as a list of captions .*, got str"):
        model.training_step(batch)
    ids = torch.ones(3, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="hold 'text' as a list of captions .*, got Tensor"):
        model.training_step({**batch, "text": ids, "text_negatives": NEGATIVES})
