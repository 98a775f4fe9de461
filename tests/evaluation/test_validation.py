"""Metrics while training are those of `evaluate`, on a bounded number of clips."""

import numpy as np
import pytest
import torch

from clipseq import CLIP
from clipseq.data import Clip, MapDataset
from clipseq.evaluation import evaluate, validation


def clip(k: int, permuted: bool = True) -> Clip:
    rng = np.random.default_rng(k)
    words = [f"w{k % 3}", f"w{k % 5}", f"v{k % 2}", f"v{k % 7}"]
    orders = [" ".join(words[i:] + words[:i]) for i in (1, 2, 3)]
    caption = " ".join(words)
    return Clip(
        id=str(k),
        signal={"mel": rng.normal(size=(4, 12 + k)).astype(np.float32)},
        caption=caption,
        permuted=tuple(dict.fromkeys(o for o in orders if o != caption)) if permuted else (),
        split="val",
    )


@pytest.fixture(scope="module")
def clips() -> MapDataset:
    return MapDataset.from_clips([clip(k) for k in range(12)], modality="audio")


def model(**options) -> CLIP:
    torch.manual_seed(1)
    signal = {"name": "audio", "views": {"mel": 4}, "patch_frames": 4, "dropout": 0.5}
    size = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
    return CLIP(signal, **size, **options)


def as_evaluated(clip_model: CLIP, clips: MapDataset) -> dict[str, float]:
    found = evaluate(clip_model, clips, split="val", draws=1).own
    both = [found[f"{way} R@1"].estimate.value for way in ("audio to text", "text to audio")]
    return {
        "audio_to_text_R1": both[0],
        "text_to_audio_R1": both[1],
        "R1": sum(both) / 2,
        "order_accuracy": found["order accuracy"].estimate.value,
    }


@pytest.mark.parametrize(
    "options",
    [{"use_sequence_similarity": False}, {"sequence_similarity_type": "temporal"}],
    ids=["plain", "temporal"],
)
def test_they_are_those_of_evaluate(clips, options):
    clip_model = model(**options).train()
    found = validation.validation_metrics(clip_model, clips, batch_size=5)
    assert found == pytest.approx(as_evaluated(clip_model, clips))
    assert clip_model.training


def test_the_number_of_clips_and_orders_is_bounded(clips, monkeypatch):
    monkeypatch.setattr(validation, "CLIPS", 5)
    monkeypatch.setattr(validation, "ORDERS", 1)
    clip_model = model(use_sequence_similarity=False)
    seen = []
    plain = CLIP.encode_batch

    def encode_batch(self, name, values, **options):
        items = values if name == "text" else next(iter(values.values()))
        seen.append((name, len(items)))
        return plain(self, name, values, **options)

    monkeypatch.setattr(CLIP, "encode_batch", encode_batch)
    found = validation.validation_metrics(clip_model, clips, batch_size=4)
    assert sum(count for name, count in seen if name == "audio") == 5
    assert sum(count for name, count in seen if name == "text") <= 10
    monkeypatch.undo()
    few = [clips[k] for k in (0, 2, 4, 7, 9)]
    expected = as_evaluated(clip_model, MapDataset.from_clips(few, modality="audio"))
    assert found["R1"] == expected["R1"]


def test_a_data_set_without_permuted_captions_has_no_order_accuracy():
    clips = MapDataset.from_clips([clip(k, permuted=False) for k in range(4)], modality="audio")
    found = validation.validation_metrics(model(use_sequence_similarity=False), clips)
    assert set(found) == {"audio_to_text_R1", "text_to_audio_R1", "R1"}
    assert not validation.has_orders(clips)


def test_they_do_not_depend_on_the_default_dtype(clips):
    clip_model = model(sequence_similarity_type="temporal")
    expected = validation.validation_metrics(clip_model, clips)
    torch.set_default_dtype(torch.float64)
    try:
        found = validation.validation_metrics(clip_model.double(), clips)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(expected)
