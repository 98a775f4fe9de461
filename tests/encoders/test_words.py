"""Tokens are put back into the words of their caption."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq.encoders import ByteTokenizer
from clipseq.encoders.words import token_spans, word_shares, word_spans


def words_of(caption):
    return [caption[start:stop] for start, stop in word_spans(caption)]


def test_words_are_letters_with_their_apostrophes_and_runs_of_punctuation():
    assert words_of("It's over, isn’t it?!") == ["It's", "over", ",", "isn’t", "it", "?!"]
    assert words_of("über-gross") == ["über", "-", "gross"]
    assert words_of(" ") == []


def test_a_token_belongs_to_the_words_that_hold_its_characters():
    caption = "ab cd"
    tokens = [(0, 2), (1, 4), (2, 3), (3, 5), (5, 5)]
    expected = [[1, 0], [0.5, 0.5], [0, 1], [0, 1], [0, 1]]
    np.testing.assert_array_equal(word_shares(tokens, word_spans(caption)), expected)


@given(st.text(min_size=1).filter(str.strip))
def test_every_byte_has_a_word(caption):
    tokenizer = ByteTokenizer()
    spans = token_spans(tokenizer, caption)
    assert len(spans) == len(tokenizer.encode(caption))
    assert [caption[a:b] for a, b in spans] == tokenizer.tokens(caption)
    words = word_spans(caption) or [(0, len(caption))]
    shares = word_shares(spans, words)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (shares.sum(0) > 0).all()


def test_pieces_are_looked_for_if_a_tokenizer_has_no_offsets():
    class Pieces:
        def tokens(self, caption):
            return ["some", "##body", "▁WAVES", "[unknown]", "twice"]

    caption = "Somebody waves twice"
    spans = token_spans(Pieces(), caption)
    assert [caption[a:b] for a, b in spans] == ["Some", "body", "waves", "", "twice"]


def test_pieces_of_transformers_keep_their_places(tmp_path):
    transformers = pytest.importorskip("transformers")
    from clipseq.encoders.hugging_face import HuggingFaceTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "some", "##body", "waves", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = HuggingFaceTokenizer(transformers.BertTokenizer(str(tmp_path / "vocab.txt")))
    caption = "Somebody zaps, waves"
    spans = token_spans(tokenizer, caption)
    assert len(spans) == len(tokenizer.encode(caption))
    assert [caption[a:b] for a, b in spans] == ["Some", "body", "zaps", ",", "waves"]
