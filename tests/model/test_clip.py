"""CLIP: its losses by their formulas, migration from plain CLIP, every call, and refused input."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipseq import CLIP, Sequences, SignalConfig, TextConfig, available_similarities
from clipseq.encoders import train_tokenizer
from clipseq.encoders.groups import caption_groups
from clipseq.errors import ConfigError, UnknownSimilarityError

VIEWS = {"range_time": 5, "doppler_time": 3}
CAPTIONS = ["walks", "sits down", "waves", "walks"]


def make(seed=0, dropout=0.0, **options):
    torch.manual_seed(seed)
    options = {
        "context_length": 16,
        "transformer_width": 16,
        "transformer_layers": 1,
        "transformer_heads": 2,
        "sequence_similarity_type": "global",
        **options,
    }
    radar = options.pop("encoder_cfg", SignalConfig(views=VIEWS, patch_frames=4, dropout=dropout))
    text = options.pop("text_cfg", TextConfig(dropout=dropout))
    return CLIP(radar, text, **options)


def batch(captions=CAPTIONS, frames=12, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    radar = {
        name: torch.randn(len(captions), bins, frames, generator=generator).to(dtype)
        for name, bins in VIEWS.items()
    }
    lengths = torch.tensor([frames, 3, 7, frames - 1, 9, 5][: len(captions)])
    return {"radar": radar, "radar_lengths": lengths, "text": captions, "ids": ["x"]}


def positives(captions):
    return torch.tensor([[a == b for b in captions] for a in captions])


def info_nce(logits, same):
    """Return InfoNCE in both directions by a plain loop; an item's positives share its target
    equally."""
    total = 0.0
    for z, p in ((logits, same), (logits.T, same.T)):
        for i in range(len(z)):
            total -= F.log_softmax(z[i], 0)[p[i]].mean() / (2 * len(z))
    return total


def siglip(logits, same):
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum() / len(logits)


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("name", ["global", "combined"])
def test_the_loss_is_the_mix_of_two_info_nces(name, weight):
    model = make(sequence_similarity_type=name, sequence_similarity_weight=weight).double()
    data = batch()
    loss = model.training_step(data)
    same = positives(CAPTIONS)
    radar, text = model(data["radar"], CAPTIONS, radar_lengths=data["radar_lengths"])
    cosines = F.normalize(radar, dim=1) @ F.normalize(text, dim=1).T
    loss_clip = info_nce(cosines / 0.07, same)
    scores = model.similarity(data["radar"], CAPTIONS, radar_lengths=data["radar_lengths"])
    loss_seq = info_nce(scores / 0.07, same)
    # the scales are float32 parameters until .double(): 1/0.07 to seven digits
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(model.metrics["loss_clip"], loss_clip.detach(), **close)
    torch.testing.assert_close(model.metrics["loss_seq"], loss_seq.detach(), **close)
    torch.testing.assert_close(loss, (1 - weight) * loss_clip + weight * loss_seq, **close)
    torch.testing.assert_close(model.metrics["loss_total"], loss.detach())


def test_siglip_takes_over_both_losses():
    model = make(use_siglip=True).double()
    data = batch()
    model.training_step(data)
    radar, text = model(data["radar"], CAPTIONS, radar_lengths=data["radar_lengths"])
    cosines = F.normalize(radar, dim=1) @ F.normalize(text, dim=1).T
    scores = model.similarity(data["radar"], CAPTIONS, radar_lengths=data["radar_lengths"])
    for name, values in (("loss_clip", cosines), ("loss_seq", scores)):
        expected = siglip(10 * values - 10, positives(CAPTIONS)).detach()
        torch.testing.assert_close(model.metrics[name], expected, rtol=1e-5, atol=1e-6)
    assert float(model.metrics["bias"]) == float(model.metrics["seq_bias"]) == -10


def test_without_sequence_similarity_it_is_bit_for_bit_the_towers_and_the_clip_loss():
    plain = make(use_sequence_similarity=False)
    for name in ("global", "combined"):
        full = make(
            sequence_similarity_type=name, sequence_similarity_options={"embed_dim": 16}
        ).state_dict()
        rest = {k: v for k, v in full.items() if not k.startswith("sequence_loss_fn.")}
        assert list(rest) == list(plain.state_dict())
        assert all(torch.equal(rest[k], v) for k, v in plain.state_dict().items())
    towers = sum(p.numel() for m in (plain.x_encoder, plain.y_encoder) for p in m.parameters())
    assert sum(p.numel() for p in plain.parameters()) == towers + 1  # the scale
    assert plain.sequence_loss_fn is None


def test_it_draws_the_same_random_numbers_and_weight_zero_trains_the_same():
    """Without sequence similarity, and with a weight of 0, three steps with dropout agree."""
    ends = []
    for options in ({"use_sequence_similarity": False}, {"sequence_similarity_weight": 0.0}):
        model = make(dropout=0.2, **options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            model.training_step(batch(seed=step), step).backward()
            optimizer.step()
        ends.append((model.state_dict(), model.metrics))
    (plain, metrics), (weight_zero, zero_metrics) = ends
    assert all(torch.equal(weight_zero[k], v) for k, v in plain.items())
    assert metrics == zero_metrics
    assert set(metrics) == {"loss_clip", "loss_total", "scale"}


def test_no_sequence_is_computed_where_none_is_compared():
    calls = []
    for options in ({"use_sequence_similarity": False}, {"sequence_similarity_weight": 0.0}, {}):
        model = make(**options)
        count = []
        for tower in (model.x_encoder, model.y_encoder):
            tower.projection.register_forward_hook(lambda *_, count=count: count.append(1))
        model.training_step(batch())
        calls.append(len(count))
    assert calls == [2, 2, 4]  # the EOT of each tower, and then the tokens of each


def test_migration_from_plain_to_global_to_combined():
    plain = make(use_sequence_similarity=False)
    plain.training_step(batch()).backward()
    state = plain.state_dict()
    for name in ("global", "combined"):
        model = make(seed=9, sequence_similarity_type=name)
        keys = model.load_state_dict(state, strict=False)
        assert all(key.startswith("sequence_loss_fn.") for key in keys.missing_keys)
        for own, old in zip(
            model(batch()["radar"], CAPTIONS), plain(batch()["radar"], CAPTIONS), strict=True
        ):
            assert torch.equal(own, old)
        model.training_step(batch()).backward()
        # the shared scale of "global" goes on to "combined"
        state = {k: v for k, v in model.state_dict().items() if "similarity_fn" not in k}


@pytest.mark.filterwarnings("ignore:x is radar")  # of the window of local
@pytest.mark.parametrize("name", sorted(available_similarities()))
def test_every_registered_similarity_trains_every_parameter(name):
    model = make(sequence_similarity_type=name)
    model.training_step(batch()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_list_is_as_good_as_a_pair_in_the_options():
    model = make(sequence_similarity_type="local", sequence_similarity_options={"window": [2, 3]})
    assert model.sequence_loss_fn.similarity_fn.window == (2, 3)


def test_sequences_pooled_features_and_masks():
    model, data = make(), batch()
    lengths = {"radar_lengths": data["radar_lengths"]}
    x, y, x_mask, y_mask = model.encode_sequences(
        data["radar"], CAPTIONS, return_masks=True, **lengths
    )
    assert x.shape == (4, 3, 16)
    assert y.shape == (4, 9, 16)
    assert x_mask.sum(1).tolist() == [3, 1, 2, 3]
    assert y_mask.sum(1).tolist() == [len(caption) for caption in CAPTIONS]
    assert not x[~x_mask].any()
    assert not y[~y_mask].any()
    both = model(data["radar"], CAPTIONS, return_sequences=True, **lengths)
    assert torch.equal(both[2], x)
    assert torch.equal(both[3], y)
    assert torch.equal(model(data["radar"], CAPTIONS, **lengths)[0], both[0])
    assert len(model.encode_sequences(data["radar"], CAPTIONS)) == 2
    pooled, sequences = model.encode_batch("radar", data["radar"], lengths=data["radar_lengths"])
    assert torch.equal(pooled, both[0])
    assert torch.equal(sequences.values, x)
    assert torch.equal(model.encode_batch("text", CAPTIONS)[1].mask, y_mask)
    assert make(use_sequence_similarity=False).encode_batch("text", CAPTIONS)[1] is None


def test_similarity_is_rectangular_and_honours_masks():
    model, data = make(sequence_similarity_type="local"), batch()
    scores = model.similarity(data["radar"], ["a", "bcd"], radar_lengths=data["radar_lengths"])
    assert scores.shape == (4, 2)
    assert scores.abs().max() <= 1
    for item, length in enumerate(data["radar_lengths"].tolist()):
        alone = {name: v[item : item + 1, :, :length] for name, v in data["radar"].items()}
        torch.testing.assert_close(model.similarity(alone, ["a", "bcd"])[0], scores[item])
    plain = make(use_sequence_similarity=False)
    radar, text = plain(data["radar"], CAPTIONS)
    expected = F.cosine_similarity(radar[:, None], text[None], dim=-1)
    torch.testing.assert_close(plain.similarity(data["radar"], CAPTIONS), expected)


def test_padding_does_not_change_the_loss():
    model, data = make(sequence_similarity_type="combined").double(), batch(dtype=torch.float64)
    loss = model.training_step(data)
    padded = {name: F.pad(v, (0, 9), value=float("nan")) for name, v in data["radar"].items()}
    torch.testing.assert_close(model.training_step({**data, "radar": padded}), loss)
    mask = torch.arange(21) < data["radar_lengths"][:, None]
    by_mask = {"radar": padded, "radar_mask": mask, "text": CAPTIONS}
    torch.testing.assert_close(model.training_step(by_mask), loss)


def test_token_ids_train_as_captions_do():
    model, data = make(), batch()
    loss = model.training_step(data)
    ids, mask = model.y_encoder.read(CAPTIONS)
    for extra in ({}, {"text_mask": mask}):
        torch.testing.assert_close(model.training_step({**data, "text": ids, **extra}), loss)


def test_equal_captions_form_a_group_and_it_is_the_same_in_every_process():
    groups = caption_groups(["walks", "sits", "walks"])
    assert groups[0] == groups[2] != groups[1]
    # BLAKE2b of b"walks" with a digest of 8 bytes, from the command line: b2sum -l 64
    assert groups[0] == 6919114862381230422
    ids = torch.tensor([[5, 6, 0], [5, 6, 7], [5, 6, 0]])
    by_id = caption_groups(ids, ids != 0)
    assert by_id[0] == by_id[2] != by_id[1]
    assert by_id[0] == caption_groups(torch.tensor([[5, 6]]))[0]
    masked = caption_groups(ids, torch.tensor([[True, True, False]] * 3))
    assert masked[0] == masked[1] == by_id[0]
    assert caption_groups(torch.zeros(2, 3, 4)) is None


SPELLINGS = ["A person walks", "sits", "a  person\twalks", "Caf\u00e9", "cafe\u0301"]
SAME_TEXT = positives([0, 1, 0, 2, 2])


@pytest.mark.parametrize("kind", ["bpe", "word"])
@pytest.mark.parametrize("use_siglip", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_captions_of_the_same_token_ids_are_positives_however_they_are_spelled(
    kind, use_siglip, micro_batch
):
    model = make(tokenizer=train_tokenizer(SPELLINGS, 400, kind=kind), use_siglip=use_siglip)
    model.micro_batch = micro_batch
    model, data = model.double(), batch(SPELLINGS, dtype=torch.float64)
    model.training_step(data)
    radar, text = model(data["radar"], SPELLINGS, radar_lengths=data["radar_lengths"])
    cosines = F.normalize(radar, dim=1) @ F.normalize(text, dim=1).T
    scores = model.similarity(data["radar"], SPELLINGS, radar_lengths=data["radar_lengths"])
    for name, values in (("loss_clip", cosines), ("loss_seq", scores)):
        if use_siglip:
            expected = siglip(10 * values - 10, SAME_TEXT)
        else:
            expected = info_nce(values / 0.07, SAME_TEXT)
        torch.testing.assert_close(model.metrics[name], expected.detach(), rtol=1e-5, atol=1e-6)


def test_groups_of_captions_are_those_of_what_the_tower_reads():
    def same(model, captions):
        groups = model.caption_groups(captions)
        return groups[:, None] == groups

    trained = make(tokenizer=train_tokenizer(SPELLINGS, 400))
    assert torch.equal(same(trained, SPELLINGS), SAME_TEXT)
    # The groups do not depend on the rest of the batch (or process), and token ids have the same.
    alone = trained.caption_groups(SPELLINGS[1:2])
    assert alone == trained.caption_groups(SPELLINGS)[1]
    assert alone == caption_groups(*trained.y_encoder.read(SPELLINGS))[1]
    # For bytes, and for a tower that reads strings in its own way, every difference counts.
    for model in (make(), make(text_cfg=Own())):
        captions = ["walks", "Walks", "walks ", "walks"]
        assert torch.equal(same(model, captions), positives(captions))
    with pytest.raises(ValueError, match="text caption 1 must have at least one token"):
        trained.caption_groups(["walks", " "])


def test_metrics_are_detached_and_complete():
    model = make(sequence_similarity_type="combined")
    model._log_norm_stats = True
    data = batch()
    model.training_step(data)
    parts = set(model.sequence_loss_fn.similarity_fn.parts)
    assert set(model.metrics) == {
        *("loss_clip", "loss_seq", "loss_total", "scale", "seq_scale"),
        *(f"weight/{part}" for part in parts),
        *("norm/radar_pooled", "norm/text_pooled", "norm/radar_seq", "norm/text_seq"),
    }
    assert not any(value.requires_grad for value in model.metrics.values())
    assert all(value.ndim == 0 for value in model.metrics.values())
    assert float(model.metrics["weight/global"]) == pytest.approx(0.1)
    x, _, mask, _ = model.encode_sequences(
        data["radar"], CAPTIONS, radar_lengths=data["radar_lengths"], return_masks=True
    )
    torch.testing.assert_close(model.metrics["norm/radar_seq"], x[mask].norm(dim=1).mean())
    assert float(model.metrics["scale"]) == pytest.approx(1 / 0.07, rel=1e-5)


def test_it_learns_four_recordings_by_heart():
    captions = ["walks", "sits down", "waves", "turns"]
    model = make(sequence_similarity_type="combined")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        model.training_step(batch(captions), step).backward()
        optimizer.step()
    data = batch(captions)
    scores = model.similarity(data["radar"], captions, radar_lengths=data["radar_lengths"])
    assert scores.argmax(0).tolist() == scores.argmax(1).tolist() == [0, 1, 2, 3]


def test_bf16_autocast_is_close_to_float32():
    model, data = make(sequence_similarity_type="combined", temperature=1.0), batch()
    exact = model.training_step(data)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.training_step(data)
    rough.backward()
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.01)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("how", ["autocast", "bfloat16", "float64"])
@pytest.mark.parametrize("sequences", [False, True])
def test_scores_are_in_float32_or_better_whatever_the_towers_compute_in(how, sequences):
    captions = [f"walks {i}" for i in range(9)]
    model, data = make(use_sequence_similarity=sequences), batch()
    dtype = getattr(torch, "float32" if how == "autocast" else how)
    model = model.to(dtype)
    radar = {name: values.to(dtype) for name, values in data["radar"].items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        scores = model.similarity(radar, captions)
        x, y = model(radar, captions)
    assert scores.dtype == (torch.float64 if how == "float64" else torch.float32)
    assert scores.abs().max() <= 1 + 1e-6
    if not sequences:
        expected = F.cosine_similarity(x.double()[:, None], y.double()[None], dim=-1)
        torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-6)


def test_float64_and_deepcopy():
    model = make(sequence_similarity_type="combined").double()
    loss = model.training_step(batch(dtype=torch.float64))
    assert loss.dtype == torch.float64
    twin = copy.deepcopy(model)
    assert torch.equal(twin.training_step(batch(dtype=torch.float64)), loss)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


def test_a_trained_tokenizer_takes_the_place_of_bytes():
    tokenizer = train_tokenizer(CAPTIONS, 300)
    model = make(tokenizer=tokenizer)
    _, text = model.encode_sequences(batch()["radar"], CAPTIONS)
    assert text.shape == (4, 2, 16)  # two words at most
    assert model.tokenizer is tokenizer


class Own(nn.Module):
    """A tower over anything that has 5 numbers per step."""

    def __init__(self, width=16):
        super().__init__()
        self.linear = nn.Linear(5, width)

    def forward(self, values, mask=None):
        return Sequences.from_tensor(self.linear(values), mask)


def test_any_module_that_returns_sequences_is_a_tower():
    model = make(encoder_cfg=Own(), text_cfg=Own())
    data = {"radar": torch.randn(3, 7, 5), "text": torch.randn(3, 4, 5)}
    model.training_step(data).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.similarity(data["radar"], data["text"][:2]).shape == (3, 2)
    assert model.tokenizer is None
    with pytest.raises(ValueError, match=r"tower Own must return values \(B, T, 16\)"):
        make(encoder_cfg=Own(width=8)).training_step({"radar": torch.randn(1, 7, 5), "text": ["a"]})
    with pytest.raises(ValueError, match="tokenizer must be None, since no tower"):
        make(text_cfg=Own(), tokenizer=train_tokenizer(CAPTIONS, 300))


def test_plain_dictionaries_are_configs():
    model = make(
        encoder_cfg={"views": VIEWS, "patch_frames": 4, "fusion": "add"},
        text_cfg={"causal": False},
    )
    assert model.x_encoder.config == SignalConfig(views=VIEWS, patch_frames=4, fusion="add")
    assert model.y_encoder.config == TextConfig(causal=False)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"encoder_cfg": {"patch_frame": 4}}, ConfigError, r"encoder_cfg\.patch_frame'.*_frames'"),
        ({"text_cfg": {"freeze": "no"}}, ConfigError, r"text_cfg\.freeze must be bool.*'no'"),
        ({"sequence_similarity_type": "locl"}, UnknownSimilarityError, "did you mean 'local'"),
        ({"sequence_similarity_options": {"pol": "max"}}, TypeError, "did you mean 'pool'"),
        ({"sequence_similarity_weight": 1.5}, ValueError, r"\[0, 1\], got 1\.5"),
        ({"sequence_similarity_weight": float("nan")}, ValueError, r"\[0, 1\]"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": 0.005}, ValueError, r"temperature must be .* at least 0\.01 .*got 0\.005"),
        ({"temperature": float("inf")}, ValueError, "temperature must be finite"),
        ({"temperature": -1.0, "use_siglip": True}, ValueError, "must be finite and positive"),
        ({"temperature": math.inf, "use_siglip": True}, ValueError, "must be finite and positive"),
        ({"temperature": math.nan, "use_siglip": True}, ValueError, "must be finite and positive"),
        ({"context_length": 0}, ValueError, "context_length"),
        ({"transformer_heads": 3}, ValueError, "width 16 and 3 heads"),
        ({"transformer_layers": 0}, ValueError, "transformer_layers"),
        ({"text_cfg": {"pretrained": "./no/such"}}, ValueError, "no/such"),
    ],
)
def test_what_it_cannot_be_built_from_is_said(options, error, match):
    with pytest.raises(error, match=match):
        make(**options)


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"use_siglip": 1}, r"use_siglip must be bool, got 1 \(int\)"),
        ({"use_siglip": "no"}, r"use_siglip must be bool, got 'no' \(str\)"),
        ({"use_sequence_similarity": 0}, r"use_sequence_similarity must be bool, got 0"),
        ({"transformer_layers": True}, r"transformer_layers must be int, got True \(bool\)"),
        ({"transformer_width": "64"}, r"transformer_width must be int, got '64' \(str\)"),
        ({"transformer_heads": 2.0}, r"transformer_heads must be int, got 2\.0 \(float\)"),
        ({"context_length": None}, r"context_length must be int, got None"),
        ({"temperature": torch.tensor(0.07)}, r"temperature must be float, got tensor\(0\.07"),
        ({"sequence_similarity_weight": "0.5"}, r"_weight must be float, got '0\.5' \(str\)"),
        ({"sequence_similarity_type": 3}, r"sequence_similarity_type must be str, got 3 \(int\)"),
        ({"sequence_similarity_options": "max"}, r"_options must be dict.*, got 'max' \(str\)"),
    ],
)
def test_an_option_of_another_type_is_refused_before_anything_is_trained(options, match):
    with pytest.raises(ConfigError, match=match):
        make(**options)


@pytest.mark.usefixtures("unchecked_signatures")
def test_numbers_of_numpy_and_whole_ones_become_pythons_own():
    model = make(
        transformer_width=np.int64(16),
        temperature=np.float32(0.5),
        use_siglip=np.bool_(True),
        sequence_similarity_weight=np.int8(1),
        sequence_similarity_type=np.str_("local"),
        sequence_similarity_options={"window": [np.int64(2), np.uint8(3)]},
    )
    config = model.config
    got = [config.transformer_width, config.temperature, config.use_siglip]
    got += [config.sequence_similarity_type, *config.sequence_similarity_options["window"]]
    wanted = [16, 0.5, True, "local", 2, 3]
    assert got == wanted
    assert list(map(type, got)) == list(map(type, wanted))
    assert type(make(temperature=1).config.temperature) is float


def test_the_smallest_temperature_is_taken():
    assert make(temperature=0.01).clip_loss_fn.scale.item() == pytest.approx(100)
    make(temperature=0.005, use_siglip=True)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"radar": None}, ValueError, "batch 7 must have the key 'radar', got.*text"),
        ({"text": None}, ValueError, "batch 7 must have the key 'text'"),
        ({"text": []}, ValueError, "batch 7 must .* one item, got no 'text'"),
        ({"radar": {}}, ValueError, "batch 7 must .* one item, got no 'radar'"),
        (
            {"radar": {"range_time": torch.zeros(0, 5, 8)}},
            ValueError,
            "batch 7 must .* one item, got no 'radar'",
        ),
        (
            {"text": ["a", "b"]},
            ValueError,
            "as many 'radar' as 'text'.*got 4 and 2",
        ),
        ({"radar": {"range_time": torch.zeros(4, 6, 12)}}, ValueError, "'range_time'.*5 bins.*6"),
        ({"radar": {"range_time": torch.zeros(4, 5)}}, ValueError, r"'range_time'.*\(4, 5\)"),
        ({"text": ["a", "", "b", "c"]}, ValueError, "text caption 1 must .* one token"),
        (
            {"text": ["a", "b", "c" * 17, "d"]},
            ValueError,
            "caption 2 must have at most 16 .*got 17",
        ),
    ],
)
def test_what_is_wrong_with_a_batch_is_said(change, error, match):
    data = {key: value for key, value in {**batch(), **change}.items() if value is not None}
    with pytest.raises(error, match=match):
        make().training_step(data, 7)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("radar_length", "radar_lengths"),
        ("lengths", "radar_lengths"),
        ("radar_masks", "radar_mask"),
        ("mask", "radar_mask"),
        ("masks", "radar_mask"),
        ("text_masks", "text_mask"),
        ("attention_mask", "text_mask"),
    ],
)
def test_a_key_that_looks_like_lengths_or_a_mask_is_not_passed_over(key, meant):
    match = f"batch 7 must not have the unknown key {key!r}: did you mean {meant!r}"
    ids = torch.randint(1, 9, (4, 5))
    model, data = make(), {"radar": batch()["radar"], "text": ids}
    value = torch.full((4,), 12) if meant == "radar_lengths" else torch.ones_like(ids)
    with pytest.raises(ValueError, match=match):
        model.training_step({**data, key: value}, 7)


def test_keys_of_the_callers_own_are_left_alone():
    model, own = make(), ["radar_path", "radar_name", "text_id", "texts", "label", "weight", 3]
    data = {"radar": batch()["radar"], "text": CAPTIONS}
    expected = model.training_step(data)
    assert torch.equal(model.training_step({**data, **dict.fromkeys(own)}), expected)
    # Captions need no mask, and lengths are numbers.
    others = {"attention_mask": torch.ones(4, 3), "radar_length": ["3 s"] * 4, "lengths": 2.0}
    assert torch.equal(model.training_step({**data, **others}), expected)
    # If the radar's own lengths are given, these belong to something else.
    model.training_step({**batch(), "lengths": None, "mask": None})


def test_a_batch_must_be_a_mapping():
    with pytest.raises(TypeError, match="batch"):
        make().training_step([torch.zeros(1), "a"])


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_nan_in_a_real_frame_names_view_item_and_batch_and_changes_nothing(junk):
    model, data = make(), batch()
    data["radar"]["doppler_time"][2, 1, 6] = junk  # item 2 has 7 real frames
    with pytest.raises(ValueError, match=r"batch 7: radar view 'doppler_time' must be .*item 2"):
        model.training_step(data, 7)
    data["radar_lengths"][2] = 6
    assert model.training_step(data).isfinite()
    single = make(encoder_cfg=SignalConfig(views={"only": 5}))
    with pytest.raises(ValueError, match=r"batch 0: radar view 'only'.*got NaN.*item 0"):
        single.training_step({"radar": torch.full((1, 5, 20), junk), "text": ["a"]})


def test_the_weight_may_change_while_training():
    model = make()
    model.sequence_similarity_weight = 0.25
    loss = model.training_step(batch())
    expected = 0.75 * model.metrics["loss_clip"] + 0.25 * model.metrics["loss_seq"]
    torch.testing.assert_close(loss.detach(), expected)
    with pytest.raises(ValueError, match=r"\[0, 1\], got -1.0"):
        model.sequence_similarity_weight = -1.0


def test_warns_once_of_a_window_longer_than_every_sequence():
    model = make(
        sequence_similarity_type="combined",
        sequence_similarity_options={"parts": {"global": {}, "local": {"window": 16}}},
    )
    with pytest.warns(UserWarning, match="has a window of 16 steps") as found:
        model.training_step(batch(frames=24))
    model.training_step(batch(frames=24))  # does not warn again
    assert [str(warning.message) for warning in found] == [
        "x is radar, y is text: combined has the part 'local', which has a window of 16 steps for "
        f"{side}, which covers every {side} (the longest has {steps}), so that its parts are not "
        "compared; set a window that is shorter, or a share of each sequence such as 1/6"
        for side, steps in (("x", 6), ("y", 9))
    ]


def test_warns_once_of_sequences_of_one_step():
    model = make(
        encoder_cfg=SignalConfig(views=VIEWS, patch_frames=16), sequence_similarity_type="temporal"
    )
    with pytest.warns(UserWarning, match="every radar of the first batch has a single") as found:
        model.training_step(batch())
    model.training_step(batch())  # does not warn again
    assert len(found) == 1
    assert "set a smaller patch_frames" in str(found[0].message)


def test_does_not_warn_of_the_defaults_of_combined():
    make(sequence_similarity_type="combined").training_step(batch())
