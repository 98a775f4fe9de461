"""`CLIP.encode` equals the towers' outputs of one item at a time, for every kind of item."""

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from clipseq import CLIP, Sequences
from clipseq.data import Clip, MapDataset
from clipseq.encoders import train_tokenizer
from clipseq.errors import DataError

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}


def alone(model, name, item):
    """Encode one item without padding, by the tower itself."""
    tower = model.towers[model.names.index(name)]
    if isinstance(item, dict):
        item = {view: torch.as_tensor(values)[None] for view, values in item.items()}
    with torch.no_grad():
        pooled, sequences = tower(item if isinstance(item, dict) else [item])
    return pooled[0], sequences.values[0]


def assert_encodes(encoded, model, name, items):
    assert len(encoded) == len(items)
    for i, item in enumerate(items):
        pooled, steps = alone(model, name, item)
        torch.testing.assert_close(encoded.pooled[i], pooled, rtol=0, atol=1e-5)
        found = encoded.sequences([i]).values[0]
        torch.testing.assert_close(found, steps, rtol=0, atol=1e-5)
        assert int(encoded.lengths[i]) == len(steps)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_maps_of_any_length_and_views_come_back_in_order(model, recordings, size):
    items = [*recordings, {"range_time": recordings[0]["range_time"]}]
    items[1] = {view: torch.from_numpy(values) for view, values in items[1].items()}
    encoded = model.encode("radar", items, batch_size=size, progress=False, dtype=None)
    assert_encodes(encoded, model, "radar", items)
    assert list(encoded.ids) == [str(i) for i in range(len(items))]
    assert encoded.side == "radar"


@pytest.mark.parametrize("size", [1, 4])
def test_captions_come_back_in_order_and_equal_ones_are_equal(model, captions, size):
    encoded = model.encode("text", captions, batch_size=size, progress=False, dtype=None)
    assert_encodes(encoded, model, "text", captions)
    assert torch.equal(encoded.pooled[0], encoded.pooled[3])


def test_equal_token_ids_are_encoded_once(captions):
    trained = CLIP({"views": {"m": 2}}, tokenizer=train_tokenizer(captions, kind="word"), **SIZE)
    sizes = []
    trained.y_encoder.register_forward_hook(lambda _, inputs, out: sizes.append(len(out[0])))
    encoded = trained.encode("text", ["walks", " WALKS ", "waves", "walks"], progress=False)
    assert sum(sizes) == 2
    assert torch.equal(encoded.pooled[0], encoded.pooled[1])
    assert not torch.equal(encoded.pooled[0], encoded.pooled[2])


def test_items_of_a_batch_have_similar_lengths(model, recordings):
    padded = []

    def note(tower, inputs, output):
        padded.append((~output[1].mask).sum().item())

    hook = model.x_encoder.register_forward_hook(note)
    model.encode("radar", recordings, batch_size=2, progress=False)
    hook.remove()
    # Patches: 3 8 1 5 8 1 6, sorted 8 8 | 6 5 | 3 1 | 1.
    assert padded == [0, 1, 2, 0]


def clip(i, recording, paired=False, **fields):
    other = {"joints": np.full((6, 5 + i), i, np.float32)} if paired else {}
    return Clip(id=f"clip {i}", signal=recording, paired=other, **{"caption": f"does {i}"} | fields)


def test_clips_and_data_sets_are_encoded_by_either_side(model, recordings):
    clips = [
        clip(i, recording | {"other": recording["range_time"]})
        for i, recording in enumerate(recordings)
    ]
    dataset = MapDataset.from_clips(clips)
    captions = [item.caption for item in clips]
    for items in (clips, dataset):
        radar = model.encode("radar", items, progress=False, dtype=None)
        assert_encodes(radar, model, "radar", recordings)
        text = model.encode("text", items, progress=False, dtype=None)
        assert_encodes(text, model, "text", captions)
        assert list(radar.ids) == list(text.ids) == [item.id for item in clips]


@pytest.mark.parametrize("swapped", [False, True])
def test_two_signals_are_named_by_the_data_set_or_known_by_their_views(recordings, swapped):
    audio = {"name": "audio", "views": {"range_time": 4, "doppler_time": 3}, "patch_frames": 4}
    motion = {"tower": "signal", "name": "motion", "views": {"joints": 6}, "patch_frames": 4}
    if swapped:
        audio["tower"] = "signal"
    two = CLIP(*((motion, audio) if swapped else (audio, motion)), **SIZE).eval()
    clips = [clip(i, recording, paired=True) for i, recording in enumerate(recordings)]
    dataset = MapDataset.from_clips(clips, modality="audio", paired_modality="motion")
    for items in (clips, dataset):
        encoded = two.encode("motion", items, progress=False, dtype=None)
        assert_encodes(encoded, two, "motion", [item.paired for item in clips])
        encoded = two.encode("audio", items, progress=False, dtype=None)
        assert_encodes(encoded, two, "audio", recordings)


def test_the_y_side_takes_the_second_signal_if_both_have_its_view(recordings):
    one = {"name": "left", "views": {"joints": 6}, "patch_frames": 4}
    two = CLIP(one, {"tower": "signal"} | one | {"name": "right"}, **SIZE).eval()
    both = [
        attrs.evolve(clip(i, {"joints": np.ones((6, 8), np.float32)}, paired=True), caption="")
        for i in range(3)
    ]
    encoded = two.encode("right", both, progress=False, dtype=None)
    assert_encodes(encoded, two, "right", [item.paired for item in both])
    encoded = two.encode("left", both, progress=False, dtype=None)
    assert_encodes(encoded, two, "left", [item.signal for item in both])


class Mean(nn.Module):
    """A user's tower: the frames of a signal, or the lengths of words."""

    def __init__(self, name=None):
        super().__init__()
        self.linear = nn.Linear(3, 8)
        if name:
            self.name = name

    def forward(self, values, mask=None):
        if isinstance(values, list):
            values = torch.tensor([[[len(v)] * 3] for v in values], dtype=torch.float32)
            return Sequences.from_tensor(self.linear(values))
        return Sequences.from_tensor(self.linear(values.mT), mask)


def test_modules_get_arrays_and_anything_else():
    own = CLIP(Mean(), Mean(), **SIZE)
    arrays = [np.random.default_rng(i).normal(size=(3, 2 + i)).astype("f4") for i in range(4)]
    encoded = own.encode("radar", arrays, batch_size=3, progress=False, dtype=None)
    for i, array in enumerate(arrays):
        steps = own.x_encoder.module.linear(torch.from_numpy(array).T)
        torch.testing.assert_close(encoded.sequences([i]).values[0], steps)
    words = own.encode("text", ["a", "bcd", "a"], progress=False, dtype=None)
    assert torch.equal(words.pooled[0], words.pooled[2])
    pairs = own.encode("text", [(1, 2), (3,)], progress=False, dtype=None)
    assert len(pairs) == 2


def test_nothing_else_changes(model, recordings):
    model.train()
    model.x_encoder.transformer.eval()
    before = [module.training for module in model.modules()]
    seen = []
    hook = model.x_encoder.register_forward_hook(lambda m, *_: seen.append(m.training))
    encoded = model.encode("radar", recordings, progress=False)
    hook.remove()
    assert [module.training for module in model.modules()] == before
    assert not any(seen)
    assert not encoded.pooled.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="items"):
        model.encode("radar", [{"range_time": np.full((4, 3), np.nan, "f4")}], progress=False)
    assert [module.training for module in model.modules()] == before
    model.eval()


def test_types_and_progress(model, captions, capsys):
    seen = []
    encoded = model.encode("text", captions, batch_size=2, progress=lambda *n: seen.append(n))
    assert encoded.pooled.dtype == encoded.steps.values.dtype == torch.float16
    assert seen == [(2, 5), (4, 5), (5, 5)]  # two captions are equal
    assert model.encode("text", captions).pooled.device.type == "cpu"
    assert capsys.readouterr() == ("", "")


def test_a_type_without_room_for_the_features_is_refused(model, captions):
    weight = model.y_encoder.projection.weight
    before = weight.detach().clone()
    weight.data.mul_(1e6)
    with pytest.raises(ValueError, match=r"dtype must have room for features of up to .*bfloat16"):
        model.encode("text", captions, progress=False)
    assert (
        model.encode("text", captions, progress=False, dtype=torch.bfloat16).pooled.isfinite().all()
    )
    weight.data.copy_(before)


def test_plain_clip_keeps_no_sequences(captions):
    plain = CLIP({"views": {"m": 2}}, use_sequence_similarity=False, **SIZE)
    encoded = plain.encode("text", captions, progress=False)
    assert encoded.steps is None
    with pytest.raises(ValueError, match="must have sequences, got pooled features only"):
        encoded.sequences()


RANGE = {"range_time": np.zeros((4, 5), np.float32)}


@pytest.mark.parametrize(
    ("name", "items", "kind", "message"),
    [
        ("txt", ["a"], ValueError, "name must be one of radar, text, .* got 'txt': did you mean"),
        ("text", [], ValueError, "items must hold at least one item, got an empty list"),
        ("text", "a person", TypeError, r"items must be a list of captions.*\['a person'\]"),
        ("radar", RANGE, TypeError, "items must be a list of arrays .* got dict"),
        ("text", ["a", 3], TypeError, r"items\[1\] must be a caption, got int"),
        ("text", ["a"] * 1025 + [""], ValueError, r"items\[1025\] must have at least one token"),
        ("text", ["a", "b" * 99], ValueError, r"items\[1\] must have at most 64 tokens"),
        ("radar", ["a"], TypeError, r"items\[0\] must be one of arrays .* got str"),
        ("radar", [RANGE, RANGE["range_time"]], ValueError, r"items\[1\] must be a dictionary"),
        ("radar", [RANGE, {}], ValueError, r"items\[1\] must have at least one map"),
        (
            "radar",
            [RANGE, {"range": RANGE["range_time"]}],
            ValueError,
            r"items\[1\] must have views among range_time, doppler_time, got 'range': did you mean",
        ),
        (
            "radar",
            [RANGE, {"range_time": np.zeros((5, 4), "f4")}],
            ValueError,
            r"items\[1\] view 'range_time' must be \(4, T\), got \(5, 4\); time comes last",
        ),
        (
            "radar",
            [RANGE, {"range_time": np.zeros((4, 0), "f4")}],
            ValueError,
            r"items\[1\] view 'range_time' must have at least one frame",
        ),
        (
            "radar",
            [{"range_time": np.zeros((4, 2), int)}],
            TypeError,
            r"items\[0\] view 'range_time' must be floating point, got int64",
        ),
        (
            "radar",
            [RANGE | {"doppler_time": np.zeros((3, 4), "f4")}],
            ValueError,
            r"items\[0\] must have views of the same T",
        ),
        (
            "radar",
            [RANGE, {"range_time": np.full((4, 2), np.inf, "f4")}],
            ValueError,
            r"items\[1\] view 'range_time' must be finite",
        ),
        (
            "radar",
            [Clip(id="k", signal={"mel": np.zeros((4, 2), "f4")})],
            ValueError,
            r"items\[0\], the clip 'k', must have a view that 'radar' takes .* got mel",
        ),
    ],
)
def test_errors_name_the_item(model, name, items, kind, message, unchecked_signatures):
    with pytest.raises(kind, match=message):
        model.encode(name, items, progress=False)


def test_a_data_set_without_the_side_is_refused(model, recordings):
    dataset = MapDataset.from_clips([clip(0, recordings[0])], modality="audio")
    with pytest.raises(DataError, match="without 'radar'"):
        model.encode("radar", dataset)


def test_views_of_read_only_and_reversed_arrays_are_read(model, recordings):
    whole = recordings[1]
    reversed_ = {view: values[:, ::-1] for view, values in whole.items()}
    frozen = {view: values.astype(">f8") for view, values in whole.items()}
    for values in frozen.values():
        values.setflags(write=False)
    encoded = model.encode("radar", [reversed_, frozen], progress=False, dtype=None)
    straight = [{v: np.ascontiguousarray(m) for v, m in reversed_.items()}, whole]
    assert_encodes(encoded, model, "radar", straight)
