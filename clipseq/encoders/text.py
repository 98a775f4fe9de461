"""The text tower: captions or token ids in, one pooled vector and a sequence of word tokens out."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipseq.encoders.config import TextConfig
from clipseq.encoders.tokenizer import Tokenizer
from clipseq.encoders.transformer import Transformer, insert_eot
from clipseq.sequences import Sequences

# Captions, or token ids (B, L). Items are checked one by one, so that an error can name its item.
Text = Sequence[Any] | Tensor


class TextTower(nn.Module):
    """Token and position embeddings, a transformer, a learned EOT token that pools.

    The real tokens are moved to the front first, so padding may be anywhere and changes nothing.

    Args:
        config: `pretrained` must be None; see `HuggingFaceTextTower` for the other.
        tokenizer: turns captions into ids.
        context_length: most tokens of a caption, EOT not counted.
        width: D of everything that comes out.
        layers: transformer blocks.
        heads: attention heads.
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
        super().__init__()
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {context_length}")
        self.config = config
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.vocab_size = config.vocab_size or tokenizer.vocab_size
        if self.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"TextConfig.vocab_size is {self.vocab_size}, but the tokenizer has "
                f"{tokenizer.vocab_size} ids: leave it out"
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

    def forward(
        self, text: Text, mask: Tensor | None = None, *, sequences: bool = True
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Encode a batch of captions.

        Args:
            text: a list of captions, or their token ids (B, L), whole numbers without EOT.
            mask: (B, L) bool for token ids, True at a real token, in any pattern. None: every id
                but the tokenizer's `pad_id` is real, which is 0 in all of ours.
            sequences: whether to return the tokens too.

        Returns:
            the output at EOT, (B, D), and the outputs at the tokens, EOT left out, moved to the
            front and zero in padded steps; or None for the latter.

        Raises:
            TypeError: neither strings nor a tensor of whole numbers; a mask that is not bool.
            ValueError: an empty batch; a caption that is empty or longer than the context (it
                names the item); an id outside the vocabulary; a mask of the wrong shape.
        """
        ids, mask = self.tokenize(text, mask)
        x, attended, place = insert_eot(self.token_embedding(ids), mask, self.eot)
        x = x + self.positions[: x.shape[1]]
        x = self.transformer(F.dropout(x, self.config.dropout, self.training), attended)
        pooled = self.projection(x[torch.arange(len(x), device=x.device), place])
        if not sequences:
            return pooled, None
        return pooled, Sequences.from_tensor(self.projection(x[:, :-1]), mask)

    def tokenize(
        self, text: Text, mask: Tensor | None = None
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """The token ids, real ones first, and which they are; arguments and errors of `forward`."""
        device, pad_id = self.eot.device, self.tokenizer.pad_id
        if isinstance(text, Tensor):
            ids, mask = check_ids(text.to(device), mask, self.vocab_size, pad_id)
        else:
            if mask is not None:
                raise ValueError("text_mask goes with token ids; captions need none")
            ids, mask = pad([self.tokenizer.encode(c) for c in check_captions(text)], pad_id)
            ids, mask = ids.to(device), mask.to(device)
        check_lengths(mask.sum(1), self.context_length)
        return real_first(ids, mask)


def check_captions(text: Any) -> list[str]:
    """The captions, or the error that says why they are none."""
    if isinstance(text, str):
        raise TypeError(f"text must be a list of captions, got one string: write [{text!r}]")
    if not isinstance(text, Sequence):
        raise TypeError(
            f"text must be a list of captions or a tensor of token ids, got {type(text).__name__}"
        )
    if not text:
        raise ValueError("text holds no caption: the batch is empty")
    for item, caption in enumerate(text):
        if not isinstance(caption, str):
            raise TypeError(f"caption {item} must be a string, got {caption!r}")
    return list(text)


def check_ids(
    ids: Tensor, mask: Tensor | None, vocab_size: int, pad_id: int | None
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Token ids and their mask, checked; padded ids become `filler`, whatever they were."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"token ids must be whole numbers, got {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"token ids must be (B, L), neither of them 0, got {tuple(ids.shape)}")
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool) if pad_id is None else ids != pad_id
    elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"text_mask must be a bool tensor, True at a real token, got {kind}")
    elif mask.shape != ids.shape:
        raise ValueError(
            f"text_mask must have the token ids' shape {tuple(ids.shape)}, got {tuple(mask.shape)}"
        )
    mask = mask.to(ids.device)
    ids = ids.long().masked_fill(~mask, filler(pad_id))
    outside = ((ids < 0) | (ids >= vocab_size)).any(1)
    if bool(outside.any()):
        item = int(outside.nonzero()[0])
        worst = ids[item][(ids[item] < 0) | (ids[item] >= vocab_size)][0]
        raise ValueError(
            f"text item {item} has the token id {int(worst)}, outside the vocabulary of "
            f"{vocab_size} ids"
        )
    return ids, mask


def check_lengths(lengths: Int[Tensor, "B"], limit: int) -> None:
    """Raise ValueError naming the first caption that is empty or has more than `limit` tokens."""
    counts = lengths.tolist()
    for item, count in enumerate(counts):
        if count == 0:
            raise ValueError(f"caption {item} is empty: every caption needs at least one token")
        if count > limit:
            raise ValueError(
                f"caption {item} has {count} tokens, more than the context_length of {limit}: "
                f"shorten it, train a tokenizer (fewer tokens a word), or build the model with a "
                f"larger context_length"
            )


def filler(pad_id: int | None) -> int:
    """What stands in padded places: they are masked, so without an id of padding any id does."""
    return 0 if pad_id is None else pad_id


def pad(
    rows: list[list[int]], pad_id: int | None
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Rows of different lengths as one tensor, and where it is real."""
    lengths = torch.tensor([len(row) for row in rows])
    steps = max(1, int(lengths.max()))
    ids = torch.tensor([row + [filler(pad_id)] * (steps - len(row)) for row in rows])
    return ids, torch.arange(steps) < lengths[:, None]


def real_first(values: Tensor, mask: Bool[Tensor, "B L"]) -> tuple[Tensor, Bool[Tensor, "B M"]]:
    """Move the real steps of (B, L) or (B, L, D) to the front, in their order; cut the rest off."""
    order = mask.argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]
    moved = values[torch.arange(len(values), device=values.device)[:, None], order]
    return moved, mask.gather(1, order)
