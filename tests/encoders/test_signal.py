"""The signal tower: padding never matters, every fusion and subset of views works, errors are
clear."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipseq.encoders import SignalConfig, SignalTower
from clipseq.errors import ConfigError

VIEWS = {"range_time": 5, "type": 3, "a.b": 2}
FUSIONS = ("concat", "add", "attention")


def make(fusion="concat", views=VIEWS, patch_frames=4, seed=0, **options):
    torch.manual_seed(seed)
    config = SignalConfig(views=views, patch_frames=patch_frames, fusion=fusion, **options)
    tower = SignalTower(config, width=16, layers=2, heads=2).double()
    with torch.no_grad():  # biases start at zero, which would hide a forgotten one
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower


def maps(batch, frames, views=VIEWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, bins, frames, generator=generator, dtype=torch.float64)
        for name, bins in views.items()
    }


TOWERS = {fusion: make(fusion) for fusion in FUSIONS}


@given(
    fusion=st.sampled_from(FUSIONS),
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=3),
    extra=st.integers(0, 9),
    junk=st.sampled_from([0.0, 1e30, float("nan"), float("inf")]),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_padding_changes_nothing(fusion, lengths, extra, junk, seed):
    """Each item of a padded batch comes out as it does alone, whatever the padding holds."""
    tower = TOWERS[fusion]
    radar = maps(len(lengths), max(lengths) + extra, seed=seed)
    for values in radar.values():
        for item, length in enumerate(lengths):
            values[item, :, length:] = junk
    pooled, tokens = tower(radar, lengths=torch.tensor(lengths))
    for item, length in enumerate(lengths):
        alone = {name: values[item : item + 1, :, :length] for name, values in radar.items()}
        alone_pooled, alone_tokens = tower(alone)
        count = -(-length // 4)
        torch.testing.assert_close(pooled[item], alone_pooled[0])
        torch.testing.assert_close(tokens.values[item, :count], alone_tokens.values[0])
        assert tokens.mask[item].tolist() == [k < count for k in range(tokens.mask.shape[1])]
        assert not tokens.values[item, count:].any()


def test_gradients_ignore_padding_too():
    tower = TOWERS["concat"]
    radar = {name: values.requires_grad_() for name, values in maps(2, 11).items()}
    with torch.no_grad():
        radar["type"][1, :, 6:] = float("nan")
    pooled, tokens = tower(radar, lengths=torch.tensor([11, 6]))
    (pooled.sum() + tokens.values.square().sum()).backward()
    for values in radar.values():
        assert values.grad.isfinite().all()
        assert not values.grad[1, :, 6:].any()
        assert values.grad[1, :, :6].any()
    tower.zero_grad()


def test_lengths_and_mask_say_the_same_and_holes_are_zeros():
    tower = TOWERS["attention"]
    radar = maps(2, 12)
    mask = torch.arange(12) < torch.tensor([[9], [12]])
    by_length = tower(radar, lengths=torch.tensor([9, 12]))[0]
    torch.testing.assert_close(tower(radar, mask=mask)[0], by_length)
    mask[1, 2] = False  # a lost frame inside a token
    mask[1, 4:8] = False  # and all frames of another
    pooled, tokens = tower(radar, mask=mask)
    assert tokens.mask[1].tolist() == [True, False, True]
    changed = {name: values.clone() for name, values in radar.items()}
    for values in changed.values():
        values[1, :, 2] = float("nan")
        values[1, :, 4:8] = float("nan")
    torch.testing.assert_close(tower(changed, mask=mask)[0], pooled)


def test_a_token_covers_its_own_frames_and_order_matters():
    tower = make("concat", views={"m": 3})
    radar = maps(1, 16, {"m": 3})["m"]
    swapped = radar[:, :, torch.tensor([*range(8, 16), *range(8)])]
    assert not torch.allclose(tower(radar)[0], tower(swapped)[0], atol=1e-3)
    assert tower(radar)[1].values.shape == (1, 4, 16)
    assert tower(radar[:, :, :13])[1].values.shape == (1, 4, 16)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_any_subset_of_views_in_any_order(fusion):
    tower = TOWERS[fusion]
    radar = maps(2, 9)
    results = []
    for names in (["range_time"], ["type", "range_time"], ["a.b", "type", "range_time"]):
        pooled, tokens = tower({name: radar[name] for name in names})
        again = tower({name: radar[name] for name in reversed(names)})[0]
        assert torch.equal(pooled, again)
        assert tokens.values.isfinite().all()
        results.append(pooled)
    assert not torch.allclose(results[0], results[1], atol=1e-3)
    assert not torch.allclose(results[1], results[2], atol=1e-3)


def test_add_is_the_mean_of_the_embeddings_of_the_views_present():
    tower = TOWERS["add"]
    embedded = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(tower.fusion(embedded, [0, 2]), (embedded[0] + embedded[1]) / 2)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_is_trained_when_every_view_is_there(fusion):
    tower = make(fusion)
    pooled, tokens = tower(maps(2, 9))
    (pooled.square().sum() + tokens.values.square().sum()).backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []
    tower(maps(2, 9))


def test_a_single_tensor_where_there_is_one_view():
    tower = make(views={"only": 3})
    values = maps(2, 9, {"only": 3})["only"]
    assert torch.equal(tower(values)[0], tower({"only": values})[0])
    with pytest.raises(ValueError, match=r"radar must be a dictionary.*3 views.*range_time"):
        TOWERS["concat"](values)


def test_float32_data_in_a_float64_tower():
    tower = TOWERS["concat"]
    radar = {name: values.float() for name, values in maps(2, 9).items()}
    assert tower(radar)[0].dtype == torch.float64


def test_no_sequence_unless_asked():
    pooled, tokens = TOWERS["add"](maps(2, 9), sequences=False)
    assert tokens is None
    assert pooled.shape == (2, 16)


def test_gradient_checkpointing_gives_the_same_with_dropout():
    plain = make("attention", dropout=0.3)
    saving = make("attention", dropout=0.3, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    grads = []
    for tower in (plain.train(), saving.train()):
        torch.manual_seed(3)
        pooled, tokens = tower(maps(2, 9))
        loss = pooled.square().sum() + tokens.values.sum()
        loss.backward()
        grads.append([loss, *[p.grad for p in tower.parameters()]])
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)
    assert not torch.equal(plain(maps(2, 9))[0], plain.eval()(maps(2, 9))[0])


def test_bf16_autocast_is_close_to_float32():
    tower = copy.deepcopy(TOWERS["attention"]).float()
    radar = {name: values.float() for name, values in maps(2, 9).items()}
    with torch.no_grad():
        exact, tokens = tower(radar)
        with torch.autocast("cpu", torch.bfloat16):
            rough, rough_tokens = tower(radar)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * float(exact.std()))
    assert rough_tokens.values.shape == tokens.values.shape


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({}, ValueError, "at least one of the views range_time.*got none"),
        (
            {"rang_time": torch.zeros(2, 5, 8)},
            ValueError,
            "radar views .*'rang_time'.*mean 'range_time'",
        ),
        ({"type": torch.zeros(2, 4, 8)}, ValueError, r"'type' must have 3 bins.*got 4"),
        ({"type": torch.zeros(2, 8, 3)}, ValueError, r"time comes last"),
        ({"type": torch.zeros(3, 8)}, ValueError, r"must be \(B, 3, T\), got \(3, 8\).*batch"),
        ({"type": torch.zeros(2, 3, 8, 1)}, ValueError, r"got \(2, 3, 8, 1\)"),
        (
            {"type": torch.zeros(2, 3, 0)},
            ValueError,
            "'type' must have at least one item",
        ),
        (
            {"type": torch.zeros(0, 3, 8)},
            ValueError,
            "'type' must have at least one item",
        ),
        ({"type": torch.zeros(2, 3, 8, dtype=torch.long)}, TypeError, "'type'.*int64"),
        (
            {"type": torch.zeros(2, 3, 8, device="meta")},
            ValueError,
            "'type' must be .*device cpu, got meta",
        ),
        (
            {"type": torch.zeros(2, 3, 8), "a.b": torch.zeros(2, 2, 9)},
            ValueError,
            r"same B and T, got 'type' \(2, 3, 8\) and 'a.b' \(2, 2, 9\)",
        ),
    ],
)
def test_what_is_wrong_with_a_view_is_said(change, error, match):
    with pytest.raises(error, match=match):
        TOWERS["concat"](change)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lengths": torch.tensor([9, 4, 1])}, ValueError, r"\(2,\).*got \(3,\)"),
        (
            {"lengths": torch.tensor([9, 10])},
            ValueError,
            "at most 9.*got 10 for item 1",
        ),
        (
            {"lengths": torch.tensor([9, 0])},
            ValueError,
            "radar item 1 must have .* real frame",
        ),
        ({"lengths": torch.tensor([9.0, 4.0])}, TypeError, "whole numbers, got torch.float32"),
        ({"mask": torch.ones(2, 8, dtype=torch.bool)}, ValueError, r"\(2, 9\).*got \(2, 8\)"),
        ({"mask": torch.ones(2, 9)}, TypeError, "bool tensor.*float32"),
        (
            {"mask": torch.zeros(2, 9, dtype=torch.bool)},
            ValueError,
            "item 0 must have .* real frame",
        ),
        (
            {"mask": torch.ones(2, 9, dtype=torch.bool), "lengths": torch.tensor([9, 4])},
            ValueError,
            "radar_lengths must be None if radar_mask is given",
        ),
    ],
)
def test_what_is_wrong_with_lengths_or_mask_is_said(options, error, match):
    with pytest.raises(error, match=match):
        TOWERS["concat"](maps(2, 9), **options)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_share_of_the_mean_of_each_bin_is_subtracted(share):
    """It equals a tower without subtraction on maps that were changed beforehand."""
    radar, lengths = maps(2, 11), [11, 6]
    tower, plain = make(mean_subtraction=share), make(mean_subtraction=0)
    changed = copy.deepcopy(radar)
    for values in changed.values():
        for item, length in enumerate(lengths):
            real = values[item, :, :length]
            real -= share * real.mean(1, keepdim=True)
    expected = plain(changed, lengths=torch.tensor(lengths))
    got = tower(radar, lengths=torch.tensor(lengths))
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1].values, expected[1].values)


def test_with_the_whole_mean_subtracted_an_offset_of_a_bin_changes_nothing():
    tower, radar = make(mean_subtraction=1), maps(2, 9)
    louder = {view: values + torch.randn(values.shape[1], 1) for view, values in radar.items()}
    torch.testing.assert_close(tower(louder)[0], tower(radar)[0])


def test_the_mean_of_long_clips_does_not_overflow_float16():
    tower = make().half()
    radar = {view: 200 + values.half() for view, values in maps(1, 1000).items()}
    assert bool(tower(radar)[0].isfinite().all())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"views": {}}, "views"),
        ({"views": {"a": 0}}, "bins of 'a' in views must be a whole number of at least 1, got 0"),
        ({"views": {"a": True}}, "'a'"),
        ({"patch_frames": 0}, "patch_frames"),
        ({"fusion": "sum"}, "concat, add, attention, got 'sum'"),
        ({"mean_subtraction": 1.5}, r"mean_subtraction must be a number in \[0, 1\], got 1.5"),
        ({"mean_subtraction": float("nan")}, "mean_subtraction"),
        ({"mean_subtraction": True}, "mean_subtraction"),
        ({"dropout": 1.0}, "dropout"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing"),
    ],
)
def test_config_values_are_checked(options, match):
    with pytest.raises(ConfigError, match=match):
        SignalConfig(**options)


def test_a_config_keeps_its_own_views():
    views = {"a": 3}
    config = SignalConfig(views=views)
    views["b"] = 4
    assert config.views == {"a": 3}
    assert SignalConfig().views == {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}


def test_width_must_suit_the_heads():
    with pytest.raises(ValueError, match="width 15 and 2 heads"):
        SignalTower(SignalConfig(), width=15, layers=1, heads=2)
