"""An explanation gives the score of the model, and weights over words and seconds."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from clipseq import CLIP, ClipseqError, Sequences, available_similarities
from clipseq.data import Axis, Clip, MapDataset
from clipseq.encoders import train_tokenizer
from clipseq.figures import SignalSteps, TextSteps

SIZE = {"transformer_width": 16, "transformer_layers": 1, "transformer_heads": 2}
SIGNAL = {"views": {"mel": 6}, "patch_frames": 4}
CAPTION = "Someone sits down, then waves."
WORDS = ("Someone", "sits", "down", ",", "then", "waves", ".")


def make(encoder_cfg=SIGNAL, text_cfg=None, **options):
    torch.manual_seed(0)
    options = {"sequence_similarity_options": {}, **options}
    model = CLIP(encoder_cfg, text_cfg, **SIZE, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


def recording(frames=10, bins=6, seed=0):
    return np.random.default_rng(seed).normal(size=(bins, frames))


BUILT_INS = [i.name for i in available_similarities().values() if i.distribution == "clipseq"]


@pytest.mark.parametrize("name", BUILT_INS)
def test_the_score_is_that_of_the_similarity(name):
    model, x = make(sequence_similarity_type=name), recording()
    found = model.explain(x, CAPTION)
    expected = model.similarity(torch.tensor(x)[None], [CAPTION]).item()
    assert found.score == pytest.approx(expected, abs=1e-12)
    assert found.similarity == name
    assert found.words == WORDS
    assert found.weights.shape == (3, 7)
    assert (found.weights >= 0).all()
    assert bool(found.parts) == (name == "combined")


def test_the_parts_sum_to_the_score_and_each_is_its_own_similarity():
    options = {"parts": {"global": {}, "temporal": {"embed_dim": 16}}, "weights": {"global": 3.0}}
    model = make(sequence_similarity_options={**options, "embed_dim": 16})
    x = recording()
    found = model.explain(x, CAPTION)
    combined = model.sequence_loss_fn.similarity_fn
    x_seq, y_seq = model.encode_sequences(torch.tensor(x)[None], [CAPTION])
    # The parts see what the projection of the whole makes of the sequences.
    sides = x_seq @ combined.x_projection.weight.T, y_seq @ combined.y_projection.weight.T
    total = sum(combined.weights.values())
    for name, part in found.parts.items():
        own = combined.parts[name]
        assert part.score == pytest.approx(own(*sides).item(), abs=1e-9)
        assert part.share == pytest.approx(combined.weights[name] / total)
        tokens = own.explain(*sides).weights[0]
        assert part.weights.sum() == pytest.approx(tokens.sum().item())
    assert set(found.parts) == {"global", "temporal"}
    assert sum(p.contribution for p in found.parts.values()) == pytest.approx(found.score, abs=1e-9)
    assert sum(p.share for p in found.parts.values()) == pytest.approx(1)
    assert "temporal" in found.as_text()


def test_the_last_step_ends_with_the_recording():
    model = make(sequence_similarity_type="local")
    found = model.explain(recording(10), CAPTION, frame_rate=2.0)
    assert found.seconds.tolist() == [[0.0, 2.0], [2.0, 4.0], [4.0, 5.0]]
    assert model.explain(recording(8), CAPTION, frame_rate=2.0).seconds.tolist() == [[0, 2], [2, 4]]
    unknown = model.explain(recording(10), CAPTION)
    assert unknown.x.unit == "frames"
    assert unknown.x.spans.tolist() == [[0, 4], [4, 8], [8, 10]]
    with pytest.raises(ClipseqError, match="seconds must come from a frame rate, got radar in f"):
        _ = unknown.seconds


TOKENIZERS = {
    "byte": None,
    "bpe": train_tokenizer([CAPTION, "a person walks"], 280),
    "word": train_tokenizer([CAPTION], kind="word"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_word_has_the_weight_of_its_tokens(kind):
    model, x = make(tokenizer=TOKENIZERS[kind], sequence_similarity_type="attention"), recording()
    found = model.explain(x, CAPTION)
    x_seq, y_seq = model.encode_sequences(torch.tensor(x)[None], [CAPTION])
    tokens = model.sequence_loss_fn.similarity_fn.explain(x_seq, y_seq).weights[0].detach().numpy()
    assert found.words == WORDS
    # The word of each token, by hand; a space belongs to the word after it.
    if kind == "bpe":
        pieces = TOKENIZERS[kind]._tokenizer.encode(CAPTION).tokens
        groups = np.cumsum([piece.startswith("Ġ") for piece in pieces]) - 1
    else:
        spaced = ("Someone", " sits", " down", ",", " then", " waves", ".")
        sizes = [len(word) for word in spaced] if kind == "byte" else 1
        groups = np.repeat(np.arange(7), sizes)
    for word in range(7):
        np.testing.assert_allclose(found.weights[:, word], tokens[:, groups == word].sum(1))


class Letters:
    """A user's tokenizer without `offsets`: one id per letter, none for spaces."""

    kind, pad_id, vocab_size = "letters", 0, 200

    def encode(self, caption):
        return [1 + ord(c) % 199 for c in caption if c != " "]

    def tokens(self, caption):
        return [c for c in caption if c != " "]

    def save(self, directory):
        raise NotImplementedError


def test_a_tokenizer_without_offsets_is_enough():
    model = make(tokenizer=Letters(), sequence_similarity_type="global")
    found = model.explain(recording(), "it is")
    assert found.words == ("it", "is")
    assert np.ptp(found.weights.sum(0)) < 1  # two letters each


def dataset(**options):
    rng = np.random.default_rng(1)
    clips = [
        Clip(
            id=f"c{i}",
            signal={"mel": rng.normal(size=(6, 10)).astype(np.float32)},
            paired={"joints": rng.normal(size=(3, 7)).astype(np.float32)},
            caption=CAPTION,
            actions=("sit_down", "wave"),
            spans=((0, 4), (4, 9)),
        )
        for i in range(2)
    ]
    names = {"modality": "audio", "paired_modality": "motion"}
    rates = {"frame_rate": 2.0, "paired_frame_rate": 1.0}
    axes = {"mel": Axis(label="frequency", unit="Hz", first=100.0, last=600.0)}
    return MapDataset.from_clips(clips, **names, **rates, axes=axes, **options)


def test_a_clip_brings_its_caption_its_frame_rate_its_axes_and_its_actions():
    model, clip = make({"name": "audio", **SIGNAL}), dataset()[0]
    found = model.explain(clip)
    same = model.explain(clip.signal["mel"], CAPTION, frame_rate=2.0)
    np.testing.assert_array_equal(found.weights, same.weights)
    assert found.seconds.tolist() == [[0.0, 2.0], [2.0, 4.0], [4.0, 5.0]]
    assert found.x.axes["mel"].unit == "Hz"
    assert [(a.name, a.start, a.stop) for a in found.actions] == [
        ("sit down", 0.0, 2.0),
        ("wave", 2.0, 4.5),
    ]
    assert model.explain(clip, frame_rate={"audio": 1.0}).seconds[-1].tolist() == [8.0, 10.0]
    assert model.explain(clip, "another text").words == ("another", "text")


def test_two_signals_have_seconds_on_both_sides():
    motion = {"tower": "signal", "name": "motion", "views": {"joints": 3}, "patch_frames": 5}
    model, clip = make({"name": "audio", **SIGNAL}, motion), dataset()[0]
    found = model.explain(clip)
    assert found.x.spans.tolist() == [[0.0, 2.0], [2.0, 4.0], [4.0, 5.0]]
    assert found.y.spans.tolist() == [[0.0, 5.0], [5.0, 7.0]]
    assert found.weights.shape == (3, 2)
    assert found.plot().get_axes()
    with pytest.raises(ClipseqError, match="words must come from a text, got the signals audio"):
        _ = found.words
    other = model.explain(clip, dataset()[1])
    assert other.score != found.score


def test_two_texts_have_words_on_both_sides():
    model = make({"tower": "text", "name": "question"}, {"name": "answer"})
    found = model.explain("who sits", "she does not")
    assert (found.x.words, found.y.words) == (("who", "sits"), ("she", "does", "not"))
    assert found.weights.shape == (2, 3)
    assert found.plot().get_axes()
    with pytest.raises(ClipseqError, match="seconds must come from a signal, got the texts"):
        _ = found.seconds


class Halves(nn.Module):
    """A user's tower: two steps of a recording, its halves."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 16)

    def forward(self, values, mask=None):
        halves = values.unflatten(-1, (2, -1)).mean(-1).mT
        return Sequences.from_tensor(self.linear(halves))


def test_steps_of_a_module_divide_the_time_evenly():
    found = make(Halves(), sequence_similarity_type="local").explain(
        recording(8), CAPTION, frame_rate=4.0
    )
    assert found.seconds.tolist() == [[0.0, 1.0], [1.0, 2.0]]


def test_modes_gradients_and_random_state_are_left_as_they_were():
    model = make({**SIGNAL, "dropout": 0.5}).train()
    model.y_encoder.eval()
    before = torch.get_rng_state()
    scores = {model.explain(recording(), CAPTION).score for _ in range(2)}
    assert len(scores) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.y_encoder.training) == (True, False)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_plot_shows_the_words_without_punctuation_and_the_parts():
    from matplotlib.text import Text

    found = make().explain(recording(), CAPTION, frame_rate=2.0)
    figure = found.plot()
    shown = {text.get_text() for text in figure.findobj(Text)}
    assert {"Someone", "sits", "time (s)", "mel"} <= shown
    assert not {",", "."} & shown
    assert any("temporal" in text for text in shown)
    assert found.plot(part="temporal", title="mine").get_suptitle() == "mine"
    with pytest.raises(ValueError, match="part must be one of .*, got 'temporl': did you"):
        found.plot(part="temporl")


def test_it_is_plain_numbers_in_json():
    import json

    found = make().explain(recording(), CAPTION, frame_rate=2.0)
    table = json.loads(json.dumps(found.to_json()))
    assert table["y"]["words"] == list(WORDS)
    assert table["x"]["spans"][-1] == [4.0, 5.0]
    assert np.shape(table["parts"]["local"]["weights"]) == (3, 7)


def test_what_cannot_be_explained_is_refused_with_a_remedy(unchecked_signatures):
    model, x = make(), recording()
    bad = x.copy()
    bad[2, 3] = np.nan
    cases = [
        (make(use_sequence_similarity=False), (x, CAPTION), "model must compare sequences"),
        (make(sequence_similarity_weight=0.0), (x, CAPTION), "model must compare sequences"),
        (model, (x,), "x must be a Clip if y is left out, got ndarray; pass a text"),
        (model, (x[None], CAPTION), r"one map \(F, T\) .*\(1, 6, 10\).*values\[0\]"),
        (model, (x, [CAPTION]), "text must be one caption or a Clip that has one, got list"),
        (model, (x, " "), "text must not be empty"),
        (model, ("x", CAPTION), "radar must be a map .*, got str"),
        (model, ({}, CAPTION), "radar must have at least one map"),
        (model, (bad, CAPTION), "radar view 'mel' must be finite"),
        (model, (x[:4], CAPTION), "must have 6 bins"),
        (model, (dataset()[0],), "hold the signal 'radar' .* 'c0' with audio and motion"),
    ]
    for given, arguments, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            given.explain(*arguments)
    for rate in (0, -1.0, float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match="frame_rate must be frames per second, above 0"):
            model.explain(x, CAPTION, frame_rate=rate)


def test_the_sides_are_values():
    found = make().explain(recording(), CAPTION)
    assert isinstance(found.x, SignalSteps)
    assert isinstance(found.y, TextSteps)
    assert (len(found.x), len(found.y)) == found.weights.shape
    assert list(itertools.chain(found.x.maps)) == ["mel"]
