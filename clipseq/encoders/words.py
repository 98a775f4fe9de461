"""The words of a caption, and the share of each token in each word."""

import re
from typing import Any

import numpy as np
from jaxtyping import Float

Span = tuple[int, int]
"""The first character of a piece of a caption, and the one after its last."""

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")


def word_spans(caption: str) -> list[Span]:
    """Return the place of each word of a caption, and of each run of punctuation."""
    return [match.span() for match in _WORD.finditer(caption)]


def token_spans(tokenizer: Any, caption: str) -> list[Span]:
    """Return the place of each token of a caption.

    A tokenizer may have the method ``offsets(caption)``, which returns it, as clipseq's own do.
    Without it, the pieces that `Tokenizer.tokens` returns are looked for in the caption, one after
    the other; a piece that is not found is an empty span at the end of the one before it.
    """
    offsets = getattr(tokenizer, "offsets", None)
    if offsets is not None:
        found = offsets(caption)
        if found is not None:
            return [(int(start), int(stop)) for start, stop in found]
    spans: list[Span] = []
    place, text = 0, caption.lower()
    for piece in tokenizer.tokens(caption):
        wanted = piece.strip().lower().removeprefix("##").lstrip("▁Ġ")
        start = text.find(wanted, place) if wanted else -1
        spans.append((start, start + len(wanted)) if start >= 0 else (place, place))
        place = spans[-1][1]
    return spans


def word_shares(tokens: list[Span], words: list[Span]) -> Float[np.ndarray, "L W"]:
    """Return the share of each token (row) that belongs to each word (column); rows sum to 1.

    A token's share of a word is the part of its characters inside words that lie in that word. A
    token that touches no word, such as a space, belongs to the next word, or else to the last one.
    """
    shares = np.zeros((len(tokens), len(words)))
    for row, (start, stop) in zip(shares, tokens, strict=True):
        for number, (first, last) in enumerate(words):
            row[number] = max(0, min(stop, last) - max(start, first))
        if not row.any():
            later = [number for number, (_, last) in enumerate(words) if last > start]
            row[later[0] if later else -1] = 1.0
        row /= row.sum()
    return shares
