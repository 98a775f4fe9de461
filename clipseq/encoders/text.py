"""The text tower, which encodes captions or token ids as one pooled vector and a sequence."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipseq.encoders.config import TextConfig
from clipseq.encoders.inputs import Inputs
from clipseq.encoders.tokenizer import Tokenizer, is_unicode
from clipseq.encoders.tower import Tower
from clipseq.encoders.transformer import Transformer, insert_eot
from clipseq.sequences import Sequences

Text = Sequence[Any] | Tensor
"""Captions, or token ids (B, L). Items are checked one by one, so that an error can name one."""


class TextTower(Tower):
    """A transformer over token and position embeddings, pooled at a learned EOT token.

    The real tokens are moved to the front first, so padding may be anywhere and changes nothing.

    Args:
        config: the side's name and the tower; `pretrained` must be None (see
            `HuggingFaceTextTower` for the other case).
        tokenizer: turns captions into ids.
        context_length: largest number of tokens of a caption, not counting EOT.
        width: D of all outputs.
        layers: number of transformer blocks.
        heads: number of attention heads.

    Attributes:
        truncated: number of captions that `read` has cut so far, with `TextConfig.truncate`.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        tokenizer: Tokenizer,
        context_length: int,
        width: int,
        layers: int,
        heads: int,
    ):
        super().__init__(config.name)
        check_context_length(context_length)
        self.config = config
        self.tokenizer: Tokenizer = tokenizer
        self.context_length = context_length
        self.truncated = 0
        self.vocab_size = config.vocab_size or tokenizer.vocab_size
        if self.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"TextConfig.vocab_size must be at least {tokenizer.vocab_size}, the number of the "
                f"tokenizer's ids, got {self.vocab_size}; leave it out"
            )
        self.transformer = Transformer(
            width,
            layers,
            heads,
            dropout=config.dropout,
            causal=config.causal,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        self.token_embedding = nn.Embedding(self.vocab_size, width)
        self.positions = nn.Parameter(0.01 * torch.randn(context_length + 1, width))
        self.eot = nn.Parameter(0.02 * torch.randn(width))
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def read(
        self, values: Text | Any, *, lengths: Any = None, mask: Tensor | None = None
    ) -> Inputs:
        """Tokenize captions, or check token ids.

        Args:
            values: a list of captions, or their token ids (B, L), whole numbers without EOT.
            lengths: must be None; a mask marks the real tokens.
            mask: (B, L) bool for token ids, True at a real token, in any pattern. None: every id
                is real except the tokenizer's `pad_id` (0 in clipseq's own tokenizers).

        Returns:
            The token ids, real ones first, and the mask of real ones.

        Raises:
            TypeError: neither strings nor a tensor of whole numbers; a mask that is not bool.
            ValueError: an empty batch; a caption that is empty or longer than the context (it
                names the item); an id outside the vocabulary; a mask of the wrong shape; lengths.
        """
        check_no_lengths(lengths, self.name)
        device, pad_id = self.eot.device, self.tokenizer.pad_id
        if isinstance(values, Tensor):
            ids, real = check_ids(values.to(device), mask, self.vocab_size, pad_id, name=self.name)
            counts = self._cut(real.sum(1).tolist())
            longest = check_token_counts(counts, self.context_length, self.name)
            return Inputs(*real_first(ids, real, longest))
        rows = [self.tokenizer.encode(c) for c in check_captions(values, mask, name=self.name)]
        counts = self._cut([len(row) for row in rows])
        check_token_counts(counts, self.context_length, self.name)
        rows = [row[:count] for row, count in zip(rows, counts, strict=True)]
        ids, real = pad(rows, pad_id)
        return Inputs(ids.to(device), real.to(device))

    def encode(
        self, inputs: Inputs, *, sequences: bool
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Encode token ids.

        Returns:
            The output at EOT, (B, D), and the outputs at the tokens, without EOT, zero in padded
            steps; None instead of these without `sequences`.
        """
        ids, mask = inputs
        assert mask is not None
        x, attended, place = insert_eot(self.token_embedding(ids), mask, self.eot)
        x = x + self.positions[: x.shape[1]]
        x = self.transformer(F.dropout(x, self.config.dropout, self.training), attended)
        pooled = self.projection(x[torch.arange(len(x), device=x.device), place])
        if not sequences:
            return pooled, None
        return pooled, Sequences.from_tensor(self.projection(x[:, :-1]), mask)

    def trim(self, inputs: Inputs) -> Inputs:
        """Cut off the columns in which every token is padding."""
        return trim_tokens(inputs)

    def _cut(self, counts: list[int]) -> list[int]:
        """Return the number of tokens to keep of each caption, and count those that are cut."""
        if not self.config.truncate:
            return counts
        self.truncated += sum(count > self.context_length for count in counts)
        return [min(count, self.context_length) for count in counts]


def trim_tokens(inputs: Inputs) -> Inputs:
    """Cut token ids, real ones first, to the longest row."""
    assert inputs.mask is not None
    longest = int(inputs.mask.sum(1).max())
    return Inputs(inputs.values[:, :longest], inputs.mask[:, :longest])


def check_context_length(context_length: int) -> None:
    """Raise ValueError if no caption has so few tokens."""
    if context_length < 1:
        raise ValueError(f"context_length must be at least 1, got {context_length}")


def check_no_lengths(lengths: Any, name: str) -> None:
    """Raise ValueError if a text tower is given lengths."""
    if lengths is not None:
        raise ValueError(
            f"{name}_lengths must be None for a text tower, got {type(lengths).__name__}; "
            f"mark the real token ids with {name}_mask"
        )


def check_captions(text: Any, mask: Tensor | None = None, *, name: str = "text") -> list[str]:
    """Return the captions as a list; raise TypeError or ValueError if they are not captions."""
    if mask is not None:
        raise ValueError(
            f"{name}_mask must be None for captions, got a mask; it belongs to token ids"
        )
    if isinstance(text, str):
        raise TypeError(f"{name} must be a list of captions, got one string; write [{text!r}]")
    if not isinstance(text, Sequence):
        raise TypeError(
            f"{name} must be a list of captions or a tensor of token ids, got {type(text).__name__}"
        )
    if not text:
        raise ValueError(f"{name} must hold at least one caption, got an empty batch")
    for item, caption in enumerate(text):
        if not isinstance(caption, str):
            raise TypeError(f"{name} caption {item} must be a string, got {caption!r}")
        if not is_unicode(caption):
            raise ValueError(
                f"{name} caption {item} must be Unicode text, got {caption!r} with half of a "
                "surrogate pair; write the whole character"
            )
    return list(text)


def check_ids(
    ids: Tensor, mask: Tensor | None, vocab_size: int, pad_id: int | None, *, name: str
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Return checked token ids and their mask; padded ids are replaced by `filler`."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} token ids must be whole numbers, got {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            f"{name} token ids must be (B, L) with B and L at least 1, got {tuple(ids.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool) if pad_id is None else ids != pad_id
    elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name}_mask must be a bool tensor, True at a real token, got {kind}")
    elif mask.shape != ids.shape:
        raise ValueError(
            f"{name}_mask must have the token ids' shape {tuple(ids.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    mask = mask.to(ids.device)
    ids = ids.long().masked_fill(~mask, filler(pad_id))
    outside = ((ids < 0) | (ids >= vocab_size)).any(1)
    if bool(outside.any()):
        item = int(outside.nonzero()[0])
        worst = ids[item][(ids[item] < 0) | (ids[item] >= vocab_size)][0]
        raise ValueError(
            f"{name} token ids must lie in [0, {vocab_size}), the vocabulary, "
            f"got {int(worst)} in item {item}"
        )
    return ids, mask


def check_token_counts(counts: Sequence[int], limit: int, name: str) -> int:
    """Return the largest count; raise ValueError if a caption has no token or too many.

    `counts` are Python integers, so reading them does not wait for a device.
    """
    for item, count in enumerate(counts):
        if count == 0:
            raise ValueError(
                f"{name} caption {item} must have at least one token, got an empty caption; "
                f"leave that item out"
            )
        if count > limit:
            raise ValueError(
                f"{name} caption {item} must have at most {limit} tokens, the context_length, "
                f"got {count}; shorten it, train a tokenizer (fewer tokens per word), build the "
                f"model with a larger context_length, or cut it with TextConfig(truncate=True)"
            )
    return max(counts)


def filler(pad_id: int | None) -> int:
    """Return the id to write in padded places; they are masked, so any valid id works."""
    return 0 if pad_id is None else pad_id


def pad(
    rows: list[list[int]], pad_id: int | None
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Pad rows of different lengths to one tensor; return it and the mask of its real ids."""
    lengths = torch.tensor([len(row) for row in rows])
    steps = max(1, int(lengths.max()))
    ids = torch.tensor([row + [filler(pad_id)] * (steps - len(row)) for row in rows])
    return ids, torch.arange(steps) < lengths[:, None]


def real_first(
    values: Tensor, mask: Bool[Tensor, "B L"], longest: int
) -> tuple[Tensor, Bool[Tensor, "B M"]]:
    """Move the real steps of (B, L) or (B, L, D) to the front, in order, and keep `longest`."""
    order = mask.argsort(dim=1, descending=True, stable=True)[:, :longest]
    moved = values[torch.arange(len(values), device=values.device)[:, None], order]
    return moved, mask.gather(1, order)
