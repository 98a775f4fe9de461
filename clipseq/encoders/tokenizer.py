"""Tokenizers, which turn captions into ids: byte by byte, or with a vocabulary trained on captions.

A tokenizer is any object with the members of `Tokenizer`. In those below, id 0 is padding. The EOT
token belongs to the text tower, not to the vocabulary.
"""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from clipseq.engine.options import LARGEST, check_kind, check_text, whole_number
from clipseq.errors import CheckpointError

FILE_NAME = "tokenizer.json"
PAD, UNKNOWN = "[PAD]", "[UNK]"


@runtime_checkable
class Tokenizer(Protocol):
    """The members that the text tower and the figures use."""

    kind: ClassVar[str]

    @property
    def pad_id(self) -> int | None:
        """The id of padding. None: there is no padding id, and every id stands for a real token."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding included."""

    def encode(self, caption: str) -> list[int]:
        """Return the caption's token ids, without padding or EOT; empty for an empty caption."""

    def tokens(self, caption: str) -> list[str]:
        """Return the piece of the caption that each id of `encode` stands for, for display."""

    def save(self, directory: Path) -> None:
        """Write the files that `load_tokenizer` needs into an existing directory."""


def is_unicode(text: str) -> bool:
    """Return True unless a string holds half of a surrogate pair, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ByteTokenizer:
    """A tokenizer with one token per UTF-8 byte: any string works, and nothing is trained."""

    kind: ClassVar[str] = "byte"
    pad_id = 0
    vocab_size = 257

    def encode(self, caption: str) -> list[int]:
        """Return the bytes, each plus one; empty if the caption is only white space.

        Raises:
            TypeError: the caption is not a string.
            ValueError: the caption is not Unicode text.
        """
        check_text("caption", caption)
        return [byte + 1 for byte in caption.encode()] if caption.strip() else []

    def tokens(self, caption: str) -> list[str]:
        """Return the character that each byte belongs to."""
        pieces = [char for char in caption for _ in char.encode()]
        return pieces if caption.strip() else []

    def offsets(self, caption: str) -> list[tuple[int, int]]:
        """Return the place in the caption of the character that each byte belongs to."""
        places = [(i, i + 1) for i, char in enumerate(caption) for _ in char.encode()]
        return places if caption.strip() else []

    def save(self, directory: Path) -> None:
        """Write nothing: this tokenizer has no state."""


class TrainedTokenizer:
    """A tokenizer of the tokenizers library, created by `train_tokenizer`."""

    kind: ClassVar[str] = "trained"
    pad_id = 0

    def __init__(self, serialized: str):
        self._serialized = serialized
        self._tokenizer = _tokenizers().Tokenizer.from_str(serialized)

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding included."""
        size: int = self._tokenizer.get_vocab_size()
        return size

    def encode(self, caption: str) -> list[int]:
        """Return the caption's token ids; empty if the caption has no words.

        Raises:
            TypeError: the caption is not a string.
            ValueError: the caption is not Unicode text.
        """
        check_text("caption", caption)
        ids: list[int] = self._tokenizer.encode(caption).ids
        return ids

    def tokens(self, caption: str) -> list[str]:
        """Return the piece of the caption that each id stands for, unknown words unchanged."""
        return [caption[start:stop].strip() for start, stop in self.offsets(caption)]

    def offsets(self, caption: str) -> list[tuple[int, int]]:
        """Return the place in the caption of the piece that each id stands for."""
        spans: list[tuple[int, int]] = self._tokenizer.encode(caption).offsets
        return spans

    def unknown(self, caption: str) -> list[str]:
        """Return the words that are read as the unknown token, in lower case; none for "bpe"."""
        unknown = self._tokenizer.token_to_id(UNKNOWN)
        if unknown is None:
            return []
        encoded = self._tokenizer.encode(caption)
        spans = zip(encoded.ids, encoded.offsets, strict=True)
        return [caption[start:stop].strip().lower() for i, (start, stop) in spans if i == unknown]

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, which the tokenizers library reads as well."""
        (directory / FILE_NAME).write_text(self._serialized, encoding="utf-8")

    def __getstate__(self) -> dict[str, Any]:
        return {"serialized": self._serialized}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["serialized"])  # type: ignore[misc]


def train_tokenizer(
    captions: Iterable[str], vocab_size: int = 4096, *, kind: Literal["bpe", "word"] = "bpe"
) -> TrainedTokenizer:
    """Train a tokenizer, which ignores case, on captions.

    Args:
        captions: the training captions.
        vocab_size: largest number of ids, padding included. A frequent word becomes one token.
        kind: "bpe" merges bytes (Sennrich et al., arXiv:1508.07909), needs at least 257 ids, and
            splits a new word into pieces. "word" has a token for each word and punctuation mark; a
            word that is new, or too rare for the vocabulary, becomes the unknown token.

    Raises:
        ImportError: the tokenizers library is not installed.
        ValueError: no caption contains a word; an unknown kind; too small a vocabulary; a caption
            that is not Unicode text.
        TypeError: a caption is not a string, or `vocab_size` is not a whole number.
    """
    smallest = {"bpe": 257, "word": 3}
    if not isinstance(kind, str) or kind not in smallest:
        raise ValueError(f"kind must be one of {', '.join(smallest)}, got {kind!r}")
    vocab_size = whole_number("vocab_size", vocab_size, least=-LARGEST)
    if vocab_size < smallest[kind]:
        raise ValueError(
            f"vocab_size must be at least {smallest[kind]} for kind={kind!r}, got {vocab_size}"
        )
    check_kind("captions", captions, Iterable, "an iterable of strings")
    captions = [captions] if isinstance(captions, str) else list(captions)
    for item, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(f"caption {item} must be a string, got {caption!r}")
        if not is_unicode(caption):
            raise ValueError(
                f"caption {item} must be Unicode text, got {caption!r} with half of a surrogate "
                "pair; write the whole character"
            )
    if not any(caption.strip() for caption in captions):
        raise ValueError("captions must hold at least one word to train a tokenizer on, got none")
    library = _tokenizers()
    if kind == "bpe":
        tokenizer = library.Tokenizer(library.models.BPE())
        pieces = library.pre_tokenizers
        # Captions are split into words as for "word", and words into bytes with a marker in front,
        # so that tokens do not depend on the white space before a word or a comma.
        tokenizer.pre_tokenizer = pieces.Sequence(
            [pieces.Whitespace(), pieces.ByteLevel(add_prefix_space=True, use_regex=False)]
        )
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD],
            initial_alphabet=pieces.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
        trainer = library.trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=[PAD, UNKNOWN], show_progress=False
        )
    normal = library.normalizers
    tokenizer.normalizer = normal.Sequence([normal.NFC(), normal.Lowercase()])
    tokenizer.train_from_iterator(captions, trainer)
    return TrainedTokenizer(tokenizer.to_str())


def load_tokenizer(kind: str, directory: Path) -> ByteTokenizer | TrainedTokenizer:
    """Return the tokenizer that was saved into `directory`.

    Raises:
        CheckpointError: its file is missing, corrupt or unreadable; the kind is unknown.
        ImportError: the tokenizers library is needed and is not installed.
    """
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    if kind != TrainedTokenizer.kind:
        raise CheckpointError(f"the kind of tokenizer must be 'byte' or 'trained', got {kind!r}")
    path = directory / FILE_NAME
    _tokenizers()
    try:
        return TrainedTokenizer(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"the tokenizer {path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"the tokenizer {path} is corrupt: {error}") from error


def _tokenizers() -> Any:
    if importlib.util.find_spec("tokenizers") is None:
        raise ImportError(
            "a trained tokenizer needs the tokenizers library: pip install 'clipseq[train]' "
            "(without it, captions are read byte by byte)"
        )
    import tokenizers

    return tokenizers
