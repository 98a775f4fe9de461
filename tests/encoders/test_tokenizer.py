"""Captions into ids and back into words."""

import copy
import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq.encoders.tokenizer import ByteTokenizer, load_tokenizer, train_tokenizer
from clipseq.errors import CheckpointError

CAPTIONS = ["A person sits down, then waves.", "a person walks, then stands up"] * 3


@given(st.text())
def test_bytes_come_back_from_their_ids(caption):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(caption)
    assert bytes(i - 1 for i in ids) == (caption.encode() if caption.strip() else b"")
    assert all(0 < i < tokenizer.vocab_size for i in ids)
    assert len(tokenizer.tokens(caption)) == len(ids)


def test_bytes_show_the_characters_they_belong_to():
    assert ByteTokenizer().tokens("né") == ["n", "é", "é"]


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_frequent_words_are_one_token_each_whatever_their_case(kind):
    tokenizer = train_tokenizer(CAPTIONS, 400, kind=kind)
    words = ["a", "PERSON", "walks", ",", "then", "waves"]
    assert tokenizer.tokens("a PERSON   walks, then waves") == words
    assert tokenizer.encode("A person walks, then waves") == tokenizer.encode(
        "a PERSON  walks , THEN waves"
    )
    assert 0 not in tokenizer.encode("a person walks")
    assert tokenizer.encode("  ") == []


def test_a_word_that_was_never_seen():
    whole = train_tokenizer(CAPTIONS, 400, kind="word")
    assert whole.encode("zebra") == whole.encode("xylophone") == [1]
    assert whole.tokens("a zebra") == ["a", "zebra"]
    pieces = train_tokenizer(CAPTIONS, 400, kind="bpe")
    assert pieces.encode("zebra") != pieces.encode("xylophone")
    assert pieces.encode("猫") != pieces.encode("犬")


@given(st.text())
def test_a_trained_tokenizer_takes_any_string(caption):
    assert len(BPE.encode(caption)) == len(BPE.tokens(caption))
    assert all(0 <= i < BPE.vocab_size for i in BPE.encode(caption))


BPE = train_tokenizer(CAPTIONS, 300)


def test_vocab_size_is_a_limit():
    assert train_tokenizer(CAPTIONS, 300).vocab_size <= 300
    assert train_tokenizer(CAPTIONS, 6, kind="word").vocab_size == 6


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_saved_and_copied_it_is_the_same(kind, tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, 300, kind=kind)
    tokenizer.save(tmp_path)
    for other in (load_tokenizer("trained", tmp_path), copy.deepcopy(tokenizer)):
        assert other.encode("a person zooms") == tokenizer.encode("a person zooms")
        assert other.vocab_size == tokenizer.vocab_size


def test_a_missing_or_corrupt_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load_tokenizer("trained", tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version":')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is corrupt"):
        load_tokenizer("trained", tmp_path)
    with pytest.raises(CheckpointError, match="'morse'"):
        load_tokenizer("morse", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([], 300), "at least one word"),
        (([" "], 300), "at least one word"),
        ((CAPTIONS, 100), "at least 257 .*, got 100"),
    ],
)
def test_what_cannot_be_trained_on(arguments, match):
    with pytest.raises(ValueError, match=match):
        train_tokenizer(*arguments)


def test_without_the_tokenizers_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"clipseq\[train\]"):
        train_tokenizer(CAPTIONS)
