"""The text tower ignores padding, can be causal, and names the caption in errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipseq.encoders import ByteTokenizer, TextConfig, TextTower
from clipseq.errors import ConfigError


def make(context_length=12, seed=0, **options):
    torch.manual_seed(seed)
    tower = TextTower(
        TextConfig(**options),
        tokenizer=ByteTokenizer(),
        context_length=context_length,
        width=16,
        layers=2,
        heads=2,
    ).double()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower


TOWERS = {causal: make(causal=causal) for causal in (True, False)}


@given(
    causal=st.booleans(),
    captions=st.lists(
        st.text("ab c", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=4
    ),
)
@settings(max_examples=40, deadline=None)
def test_a_caption_comes_out_as_it_does_alone(causal, captions):
    tower = TOWERS[causal]
    pooled, tokens = tower(captions)
    for item, caption in enumerate(captions):
        alone_pooled, alone_tokens = tower([caption])
        torch.testing.assert_close(pooled[item], alone_pooled[0])
        torch.testing.assert_close(tokens.values[item, : len(caption)], alone_tokens.values[0])
        assert tokens.lengths[item] == len(caption)
        assert not tokens.values[item, len(caption) :].any()


@given(
    causal=st.booleans(),
    mask=st.lists(st.booleans(), min_size=2, max_size=9).filter(any),
    junk=st.integers(-5, 999),
)
@settings(max_examples=40, deadline=None)
def test_padding_may_be_anywhere_among_token_ids(causal, mask, junk):
    tower = TOWERS[causal]
    real = torch.tensor([mask])
    ids = torch.arange(1, len(mask) + 1)[None].masked_fill(~real, junk)
    pooled, tokens = tower(ids, mask=real)
    expected = tower(ids[real][None])
    torch.testing.assert_close(pooled, expected[0])
    torch.testing.assert_close(tokens.values, expected[1].values)


def test_token_ids_and_captions_are_the_same_thing():
    tower = TOWERS[True]
    ids, mask = tower.read(["waves", "is"])
    assert mask.sum(1).tolist() == [5, 2]
    for given_mask in (mask, None):  # 0 is padding
        torch.testing.assert_close(tower(ids, mask=given_mask)[0], tower(["waves", "is"])[0])


def test_causal_words_see_only_what_came_before():
    ends_differ = ["abcd", "abcx"]
    causal = TOWERS[True](ends_differ)[1].values
    torch.testing.assert_close(causal[0, :3], causal[1, :3])
    both_ways = TOWERS[False](ends_differ)[1].values
    assert not torch.allclose(both_ways[0, :3], both_ways[1, :3], atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_the_pooled_feature_knows_the_order(causal):
    pooled = TOWERS[causal](["ab", "ba"])[0]
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)


def test_the_longest_caption_that_fits_and_one_that_does_not():
    tower = TOWERS[True]
    assert tower(["a" * 12])[1].values.shape == (1, 12, 16)
    with pytest.raises(ValueError, match=r"text caption 1 must have at most 12 tokens.*got 13"):
        tower(["a", "a" * 13])


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (["a", ""], ValueError, "text caption 1 must .* one token"),
        (["a", "b", " \n"], ValueError, "text caption 2 must have at least one token"),
        ([], ValueError, "at least one caption, got an empty batch"),
        ("walks", TypeError, r"one string; write \['walks'\]"),
        (["a", 3], TypeError, "caption 1 must be a string, got 3"),
        (torch.zeros(2, 3), TypeError, "whole numbers"),
        (torch.ones(3, dtype=torch.long), ValueError, r"\(B, L\).*got \(3,\)"),
        (torch.ones(2, 0, dtype=torch.long), ValueError, r"got \(2, 0\)"),
        (torch.tensor([[1, 2], [0, 0]]), ValueError, "text caption 1 must .* one token"),
        (
            torch.tensor([[1, 2], [3, 257]]),
            ValueError,
            r"text token ids .*\[0, 257\).*got 257 in item 1",
        ),
        (torch.tensor([[1, -2], [3, 2]]), ValueError, "got -2 in item 0"),
    ],
)
def test_what_is_wrong_with_text_is_said(text, error, match):
    with pytest.raises(error, match=match):
        TOWERS[True](text)


def test_what_is_wrong_with_a_text_mask_is_said():
    tower, ids = TOWERS[True], torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(TypeError, match=r"bool tensor.*int64"):
        tower(ids, mask=ids)
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(2, 2\)"):
        tower(ids, mask=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="text_mask must be None for captions"):
        tower(["a"], mask=torch.ones(1, 1, dtype=torch.bool))


def test_a_vocabulary_of_ones_own():
    tower = make(vocab_size=1000)
    assert tower(torch.tensor([[999, 5]]))[0].shape == (1, 16)
    with pytest.raises(ValueError, match=r"vocab_size must be at least 257.*got 10"):
        make(vocab_size=10)


def test_gradient_checkpointing_gives_the_same_with_dropout():
    plain, saving = make(dropout=0.3), make(dropout=0.3, gradient_checkpointing=True)
    results = []
    for tower in (plain.train(), saving.train()):
        torch.manual_seed(3)
        pooled, tokens = tower(["walks", "is"])
        loss = pooled.square().sum() + tokens.values.sum()
        loss.backward()
        results.append([loss, *[p.grad for p in tower.parameters()]])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_the_same_seed_gives_the_same_tower():
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(first(["a b"])[0], again(["a b"])[0])
    assert not torch.equal(first(["a b"])[0], other(["a b"])[0])


def test_freeze_needs_something_pretrained():
    with pytest.raises(ConfigError, match="freeze must be False without pretrained"):
        TextConfig(freeze=True)


def test_a_long_caption_is_cut_on_request_and_counted():
    tower = make(context_length=4, truncate=True)
    pooled, tokens = tower(["walks", "sit", "waves"])
    assert tower.truncated == 2
    assert tokens.lengths.tolist() == [4, 3, 4]
    torch.testing.assert_close(pooled, make(context_length=4)(["walk", "sit", "wave"])[0])
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(tower(ids)[0], make(context_length=4)(ids[:, :4])[0])
    with pytest.raises(ValueError, match=r"or cut it with TextConfig\(truncate=True\)"):
        make(context_length=4)(["walks"])


def test_half_a_character_is_named():
    with pytest.raises(ValueError, match="text caption 1 must be Unicode text, got .*surrogate"):
        make()(["a", "waves \ud83d"])
