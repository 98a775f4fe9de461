"""Either side is a signal, a text or a module: each pair trains, is saved, and is loaded."""

import pytest
import torch
from torch import nn

from clipseq import CLIP, Sequences, SignalConfig, TextConfig
from clipseq.encoders import frames, module, signal, text, tokenizer
from clipseq.model import batches

SIZE = {
    "context_length": 16,
    "transformer_width": 16,
    "transformer_layers": 1,
    "transformer_heads": 2,
}
AUDIO = SignalConfig(name="audio", views={"mel": 6}, patch_frames=4)
MOTION = SignalConfig(name="motion", views={"joints": 5, "speed": 2}, patch_frames=2)


class Own(nn.Module):
    """A tower over maps (B, 5, T)."""

    def __init__(self, name=None):
        super().__init__()
        self.linear = nn.Linear(5, 16)
        if name is not None:
            self.name = name

    def forward(self, values, mask=None):
        return Sequences.from_tensor(self.linear(values.mT), mask)


def maps(config, frames=12, items=4):
    return {view: torch.randn(items, bins, frames) for view, bins in config.views.items()}


LENGTHS = torch.tensor([12, 3, 7, 9])


def two_signals():
    batch = {"audio": maps(AUDIO), "audio_lengths": LENGTHS}
    batch |= {"motion": maps(MOTION, 9), "motion_mask": torch.arange(9) < LENGTHS[:, None]}
    return {"encoder_cfg": AUDIO, "text_cfg": MOTION}, batch


def two_texts():
    batch = {"query": ["who", "what is it", "when", "where"], "document": ["a", "b c", "d", "e"]}
    towers = {"encoder_cfg": {"tower": "text", "name": "query"}, "text_cfg": {"name": "document"}}
    return towers, batch


def text_and_signal():
    batch = {"text": ["hums", "taps", "sings", "claps"], "audio": maps(AUDIO)}
    return {"encoder_cfg": TextConfig(), "text_cfg": AUDIO}, batch


def two_modules():
    batch = {"radar": torch.randn(4, 5, 12), "radar_lengths": LENGTHS}
    batch |= {"motion": torch.randn(4, 5, 9), "motion_lengths": LENGTHS.clamp(max=9)}
    return {"encoder_cfg": Own(), "text_cfg": Own("motion")}, batch


PAIRS = {pair.__name__: pair for pair in (two_signals, two_texts, text_and_signal, two_modules)}


def split(batch, names):
    x, y = (batch[name] for name in names)
    return x, y, {key: value for key, value in batch.items() if key not in names}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_it_trains_and_every_parameter_has_a_gradient(pair, micro_batch):
    towers, batch = pair()
    model = CLIP(**towers, **SIZE)
    model.micro_batch = micro_batch
    model._log_norm_stats = True
    model.training_step(batch).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    x, y = model.names
    norms = {name for name in model.metrics if name.startswith("norm/")}
    assert norms == {f"norm/{name}_{kind}" for name in (x, y) for kind in ("pooled", "seq")}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_it_is_saved_and_loaded(pair, tmp_path):
    towers, batch = pair()
    model = CLIP(**towers, **SIZE).eval()
    model.save_pretrained(tmp_path)
    modules = {key: Own(getattr(t, "name", None)) for key, t in towers.items() if type(t) is Own}
    again = CLIP.from_pretrained(tmp_path, **modules)
    assert again.names == model.names
    x, y, extra = split(batch, model.names)
    assert torch.equal(again.similarity(x, y, **extra), model.similarity(x, y, **extra))
    keys = {name.split(".")[0] for name in again.state_dict()}
    assert keys == {"x_encoder", "y_encoder", "clip_loss_fn", "sequence_loss_fn"}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_each_side_is_encoded_by_its_name(pair):
    towers, batch = pair()
    model = CLIP(**towers, **SIZE).eval()
    x, y, extra = split(batch, model.names)
    both = model(x, y, return_sequences=True, **extra)
    for number, name in enumerate(model.names):
        options = {key: extra.get(f"{name}_{key}") for key in ("lengths", "mask")}
        pooled, sequences = model.encode_batch(name, batch[name], **options)
        assert torch.equal(pooled, both[number])
        assert torch.equal(sequences.values, both[2 + number])
    with pytest.raises(ValueError, match=f"name must be one of {model.names[0]}, .*got 'nothing'"):
        model.encode_batch("nothing", x)


def test_two_signals_belong_together_one_by_one():
    """Without captions the positives are the diagonal: InfoNCE over pooled cosines, in a loop."""
    towers, batch = two_signals()
    model = CLIP(**towers, **SIZE, use_sequence_similarity=False).double()
    loss = model.training_step(batch)
    x, y, extra = split(batch, model.names)
    logits = model.similarity(x, y, **extra) / 0.07
    rows = [-torch.log_softmax(z, 0)[i] for m in (logits, logits.T) for i, z in enumerate(m)]
    torch.testing.assert_close(loss, torch.stack(rows).mean(), rtol=1e-5, atol=1e-6)
    assert model.text_tower is None
    with pytest.raises(ValueError, match="captions must belong to a text tower"):
        model.caption_groups(["a"])


def test_equal_documents_are_positives_of_one_another():
    towers, batch = two_texts()
    model = CLIP(**towers, **SIZE)
    distinct = model.training_step(batch)
    groups = model.caption_groups(["a", "b", "a"])
    assert groups[0] == groups[2] != groups[1]
    batch["document"][1] = batch["document"][0]
    model.training_step(batch)
    x, y = model(batch["query"], batch["document"])
    cosines = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1) / 0.07
    same = torch.tensor([[i == j or {i, j} == {0, 1} for j in range(4)] for i in range(4)])
    expected = 0.0
    for z, p in ((cosines, same), (cosines.T, same.T)):
        for i in range(4):
            expected -= torch.log_softmax(z[i], 0)[p[i]].mean() / 8
    torch.testing.assert_close(model.metrics["loss_clip"], expected.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(distinct, expected)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"audio": {"mel": torch.zeros(4, 7, 12)}}, ValueError, "audio view 'mel' must have 6"),
        ({"audio_lengths": torch.full((4,), 13)}, ValueError, "audio_lengths must be at most 12"),
        ({"motion": {"joints": torch.zeros(4, 5)}}, ValueError, "motion view 'joints' must be"),
        ({"motion_mask": torch.ones(4, 8) > 0}, ValueError, r"motion_mask must be \(4, 9\)"),
        ({"motion": None}, ValueError, "batch 7 must have the key 'motion', got audio"),
        (
            {"motion": {"speed": torch.full((4, 2, 9), float("nan"))}},
            ValueError,
            "batch 7: motion view 'speed' must be finite",
        ),
        (
            {"motion_mask": None, "motion_lengts": LENGTHS},
            ValueError,
            "unknown key 'motion_lengts': did you mean 'motion_lengths'",
        ),
        (
            {"audio_lengths": None, "lengths": LENGTHS},
            ValueError,
            "unknown key 'lengths': did you mean 'audio_lengths'",
        ),
    ],
)
def test_errors_use_the_names(change, error, match):
    towers, batch = two_signals()
    data = {key: value for key, value in {**batch, **change}.items() if value is not None}
    with pytest.raises(error, match=match):
        CLIP(**towers, **SIZE).training_step(data, 7)


def test_lengths_and_masks_are_keywords_by_the_names():
    towers, batch = two_signals()
    model = CLIP(**towers, **SIZE)
    x, y, _ = split(batch, model.names)
    for call in (model, model.similarity, model.encode_sequences):
        with pytest.raises(TypeError, match="among audio_lengths.*got 'radar_lengths'"):
            call(x, y, radar_lengths=LENGTHS)
    texts, batch = two_texts()
    with pytest.raises(TypeError, match="among query_mask, document_mask, got 'query_lengths'"):
        CLIP(**texts, **SIZE)(batch["query"], batch["document"], query_lengths=LENGTHS)


CHECKS = [
    (signal, "frame_mask"),
    (module, "frame_mask"),
    (signal.SignalTower, "_check_view"),
    (text, "check_ids"),
    (text, "check_captions"),
    (text, "check_token_counts"),
    (batches, "first_not_finite"),
    (tokenizer.ByteTokenizer, "encode"),
]


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (two_signals, {"frame_mask": 2, "_check_view": 3, "first_not_finite": 2}),
        (two_modules, {"frame_mask": 2, "first_not_finite": 2}),
        (two_texts, {"check_captions": 2, "check_token_counts": 2, "encode": 8}),
        (
            text_and_signal,
            {
                "check_captions": 1,
                "check_token_counts": 1,
                "encode": 4,
                "frame_mask": 1,
                "_check_view": 1,
                "first_not_finite": 1,
            },
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_every_input_is_checked_once_a_step(pair, expected, micro_batch, monkeypatch):
    """This holds with micro-batches and their recomputation too; only the search for NaN takes as
    many pieces."""
    towers, batch = pair()
    model = CLIP(**towers, **SIZE)
    model.micro_batch = micro_batch
    calls = {}

    def count(name, real):
        def counted(*args, **options):
            calls[name] = calls.get(name, 0) + 1
            return real(*args, **options)

        return counted

    for owner, name in CHECKS:
        monkeypatch.setattr(owner, name, count(name, getattr(owner, name)))
    model.training_step(batch).backward()
    pieces = 1 if micro_batch is None else 4 // micro_batch
    expected = {n: c * (pieces if n == "first_not_finite" else 1) for n, c in expected.items()}
    assert calls == expected


def test_token_ids_are_checked_once_a_step(monkeypatch):
    towers, batch = two_texts()
    model = CLIP(**towers, **SIZE)
    ids = {tower.name: tower.read(batch[tower.name]).values for tower in model.towers}
    calls = []
    real = text.check_ids
    monkeypatch.setattr(text, "check_ids", lambda *a, **k: calls.append(k["name"]) or real(*a, **k))
    torch.testing.assert_close(model.training_step(ids), model.training_step(batch))
    assert calls == ["query", "document"]


def test_lengths_on_the_cpu_are_checked_there():
    """Checking lengths does not read from the device of the maps: on "meta" that would fail."""
    values = {"mel": torch.zeros(4, 6, 12, device="meta")}
    assert frames.frame_mask(values, LENGTHS, None, name="audio").device.type == "meta"
