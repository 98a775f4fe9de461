"""A text tower from a Hugging Face model: a local directory, or a model of the hub."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipseq.encoders.config import TextConfig
from clipseq.encoders.hub import find_folder
from clipseq.encoders.inputs import Inputs
from clipseq.encoders.lora import add_adapters, merge_adapters
from clipseq.encoders.text import (
    Text,
    check_captions,
    check_ids,
    check_no_lengths,
    check_token_counts,
    pad,
    real_first,
    trim_tokens,
)
from clipseq.encoders.tower import Tower
from clipseq.engine.process_state import restored
from clipseq.sequences import Sequences

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""The files of a model on the hub that are downloaded; "*.bin" too if it has no safetensors."""


class HuggingFaceTokenizer:
    """The tokenizer of the model directory, with clipseq's interface."""

    kind: ClassVar[str] = "hugging_face"

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.pad_id: int | None = tokenizer.pad_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokenizer)

    def with_special(self, caption: str) -> list[int]:
        """Return the ids that the model reads, with special tokens such as [CLS] and [SEP]."""
        ids: list[int] = self.tokenizer(caption, truncation=False, verbose=False)["input_ids"]
        return ids

    def cut(self, caption: str, limit: int) -> list[int]:
        """Return the first `limit` ids that the model reads, special tokens at the end included."""
        ids: list[int] = self.tokenizer(caption, truncation=True, max_length=limit, verbose=False)[
            "input_ids"
        ]
        return ids[:limit]

    def encode(self, caption: str) -> list[int]:
        """Return the ids of the caption's words, without special tokens."""
        return [i for i in self.with_special(caption) if i not in self.special_ids]

    def tokens(self, caption: str) -> list[str]:
        """Return the piece of the caption that each id of `encode` stands for."""
        return [self.tokenizer.decode([i]).strip() for i in self.encode(caption)]

    def offsets(self, caption: str) -> list[tuple[int, int]] | None:
        """Return the place in the caption of each piece; None if transformers does not know."""
        if not self.tokenizer.is_fast:
            return None
        found = self.tokenizer(
            caption, truncation=False, verbose=False, return_offsets_mapping=True
        )
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [span for i, span in pairs if i not in self.special_ids]

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files, as transformers does."""
        self.tokenizer.save_pretrained(directory)


class HuggingFaceTextTower(Tower):
    """A pretrained encoder whose last hidden states are projected to D.

    The sequence holds the outputs at the words, without special tokens such as [CLS] and [SEP].
    The pooled feature is its mean: unlike the output at one special token, it is meaningful in
    every architecture, also when frozen (Sentence-BERT, arXiv:1908.10084).

    Args:
        config: the side's name and the tower; `pretrained` names a local directory.
        context_length: largest number of tokens of a caption, special ones included; the
            pretrained model's own limit applies as well.
        width: D of all outputs.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the directory does not exist, transformers cannot load it, it is not a model of
            text (two halves, of images, without an encoder), or its tokenizer has more ids than the
            model has embeddings.
        CheckpointError: the hub has no such model, or cannot be reached.

    Attributes:
        truncated: number of captions that `read` has cut so far, with `TextConfig.truncate`.
    """

    def __init__(self, config: TextConfig, *, context_length: int, width: int):
        super().__init__(config.name)
        model, tokenizer = _load(config)
        self.config = config
        self.tokenizer = HuggingFaceTokenizer(tokenizer)
        self.language_model = model
        self.truncated = 0
        limits = (context_length, _positions(model))
        self.context_length = min(
            limit for limit in (*limits, tokenizer.model_max_length) if limit is not None
        )
        self.projection = nn.Linear(model.config.hidden_size, width, bias=False)
        nn.init.normal_(self.projection.weight, std=model.config.hidden_size**-0.5)
        if config.lora is not None:
            add_adapters(model, config.lora)
        if config.freeze:
            self.language_model.requires_grad_(False)
        elif config.gradient_checkpointing:
            # transformers 5 renames this method.
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            enable = getattr(model, new if hasattr(model, new) else old)
            enable({"use_reentrant": False})
        self.train()

    def train(self, mode: bool = True) -> "HuggingFaceTextTower":
        """Set the mode of the tower; a frozen language model stays in eval mode."""
        super().train(mode)
        if self.config.freeze:
            self.language_model.eval()
        return self

    def read(
        self, values: Text | Any, *, lengths: Any = None, mask: Tensor | None = None
    ) -> Inputs:
        """Tokenize captions, or check token ids.

        Args:
            values: a list of captions, or token ids (B, L) from the directory's tokenizer, special
                tokens included.
            lengths: must be None; a mask marks the real tokens.
            mask: (B, L) bool for token ids, True at a real token, special tokens included. None:
                every id except that of the pad token is real. Padded ids need a mask if the
                tokenizer has no pad token.

        Returns:
            the token ids with special ones, real ones first, and the mask of real ones.

        Raises:
            TypeError, ValueError: see `TextTower.read`; also for a caption of only special tokens.
        """
        check_no_lengths(lengths, self.name)
        device, pad_id = self.projection.weight.device, self.tokenizer.pad_id
        if isinstance(values, Tensor):
            ids, real = check_ids(
                values.to(device), mask, self.tokenizer.vocab_size, pad_id, name=self.name
            )
            counts = torch.stack([real.sum(1), self._words(ids, real).sum(1)]).tolist()
            if self.config.truncate:
                self.truncated += sum(count > self.context_length for count in counts[0])
                counts = [[min(count, self.context_length) for count in row] for row in counts]
            longest = check_token_counts(counts[0], self.context_length, self.name)
            check_token_counts(counts[1], self.context_length, self.name)
            return Inputs(*real_first(ids, real, longest))
        captions = check_captions(values, mask, name=self.name)
        rows = [self.tokenizer.with_special(caption) for caption in captions]
        if self.config.truncate:
            long = [item for item, row in enumerate(rows) if len(row) > self.context_length]
            self.truncated += len(long)
            for item in long:
                rows[item] = self.tokenizer.cut(captions[item], self.context_length)
        check_token_counts([len(row) for row in rows], self.context_length, self.name)
        words = [sum(i not in self.tokenizer.special_ids for i in row) for row in rows]
        check_token_counts(words, self.context_length, self.name)
        ids, real = pad(rows, pad_id)
        return Inputs(ids.to(device), real.to(device))

    def encode(
        self, inputs: Inputs, *, sequences: bool
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Encode token ids.

        Returns:
            (B, D), and the outputs at the words, moved to the front and zero in padded steps;
            None for the latter without `sequences`.
        """
        ids, mask = inputs
        assert mask is not None
        word = self._words(ids, mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            hidden = self.language_model(input_ids=ids, attention_mask=mask.long())
        states = hidden.last_hidden_state.to(self.projection.weight.dtype)
        values, word = real_first(self.projection(states), word, int(word.sum(1).max()))
        tokens = Sequences.from_tensor(values, word)
        pooled = tokens.values.sum(1) / tokens.lengths[:, None]
        return pooled, (tokens if sequences else None)

    def trim(self, inputs: Inputs) -> Inputs:
        """Cut off the columns in which every token is padding."""
        return trim_tokens(inputs)

    def _words(self, ids: Tensor, mask: Tensor) -> Bool[Tensor, "B L"]:
        special_ids = sorted(self.tokenizer.special_ids)
        special = torch.tensor(special_ids, dtype=ids.dtype, device=ids.device)
        return mask & ~torch.isin(ids, special)

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a language model without adapters that computes the same.

        Args:
            weights: the weights of the language model; without `TextConfig.lora` they are returned.
        """
        if self.config.lora is None:
            return dict(weights)
        return merge_adapters(self.language_model, self.config.lora, weights)

    def save(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Write model and tokenizer into `directory`, as transformers does (safetensors).

        Args:
            directory: the folder to write into.
            weights: the weights of the language model, of which this process may hold only a part.
        """
        with _no_progress_bar():
            self.language_model.save_pretrained(directory, state_dict=dict(weights))
        self.tokenizer.save(directory)


def check_pretrained(config: TextConfig) -> Path:
    """Return the directory of the model; a model of the hub is downloaded if it is not there yet.

    Raises:
        ImportError: transformers is not installed.
        ValueError: `config.pretrained` is neither the directory of a model nor a name on the hub.
        CheckpointError: the hub has no such model, or cannot be reached.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(
            "TextConfig(pretrained=...) needs transformers: pip install 'clipseq[hf]'"
        )
    directory = _find_directory(config)
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"TextConfig.pretrained must be a Hugging Face model directory with a config.json, or "
            f"the name of a model on the hub such as 'owner/name', got {config.pretrained!r}"
        )
    return directory


@restored()  # from what transformers changes when it is imported, and draws for missing weights
def _load(config: TextConfig) -> tuple[Any, Any]:
    directory = check_pretrained(config)
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING as ENCODERS
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

    try:
        described = AutoConfig.from_pretrained(directory, local_files_only=True)
        # T5 and its relatives: the half that reads text is a model of its own.
        kind: Any = ENCODERS.get(type(described), None)
        half = kind is not None and kind.__name__.endswith("EncoderModel")
        _check_text_model(described, directory, half=half)
        with _no_progress_bar():
            model, report = (AutoModelForTextEncoding if half else AutoModel).from_pretrained(
                directory, local_files_only=True, dtype="auto", output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except _NotATextModel:
        raise
    except Exception as error:
        raise ValueError(f"transformers cannot load {directory}: {error}") from error
    if model.main_input_name != "input_ids":
        raise _NotATextModel(directory, f"a model of {model.main_input_name}")
    rows = model.get_input_embeddings().num_embeddings
    ids = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if ids > rows:
        raise ValueError(
            f"the tokenizer in {directory} must have at most {rows} ids, the embeddings of its "
            f"model, got {ids}; call model.resize_token_embeddings({ids}) and save the model again"
        )
    # transformers fills missing weights with random numbers. A pooler is not used here.
    missing = [key for key in report["missing_keys"] if "pooler" not in key]
    if missing:
        raise ValueError(f"the weights in {directory} lack {', '.join(sorted(missing))}")
    for name, parameter in model.named_parameters():
        if "pooler" in name:
            parameter.requires_grad_(False)
    # Weights stored in half precision are trained in full precision; float64 stays float64.
    return model.to(torch.promote_types(model.dtype, torch.get_default_dtype())), tokenizer


class _NotATextModel(ValueError):
    """The directory holds something other than one encoder of text."""

    def __init__(self, directory: Path, got: str):
        super().__init__(
            f"TextConfig.pretrained must hold one model that encodes text, such as BERT, got "
            f"{got} in {directory}; save its text model alone into a directory, with its tokenizer"
        )


def _check_text_model(config: Any, directory: Path, *, half: bool) -> None:
    """Raise ValueError for a model with two halves, of which it is unclear which one to use."""
    if half:
        return
    kind = type(config).__name__.removesuffix("Config")
    if getattr(config, "is_encoder_decoder", False):
        raise _NotATextModel(directory, f"{kind}, with an encoder and a decoder,")
    parts = [name for name in vars(config) if name.endswith("_config") and name != "text_config"]
    if hasattr(config, "text_config") or not hasattr(config, "hidden_size"):
        halves = f" (text_config, {', '.join(parts)})" if parts else ""
        raise _NotATextModel(directory, f"{kind}, which has several parts{halves},")


def _positions(model: nn.Module) -> int | None:
    """Return the largest number of tokens that the model has positions for, or None.

    RoBERTa, XLM-R, MPNet and others count positions from behind the padding id.
    """
    config: Any = model.config
    limit: int | None = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            usable = module.num_embeddings - first
            limit = usable if limit is None else min(limit, usable)
    return limit


def _find_directory(config: TextConfig) -> Path:
    """Return the local directory of the model, after downloading it if it is not there yet."""
    find = partial(find_folder, config.pretrained or "", revision=config.revision)
    directory, downloaded = find(files=_FILES, option="TextConfig.pretrained")
    if downloaded and not any(directory.glob("*.safetensors")):
        directory, _ = find(files=(*_FILES, "*.bin"), option="TextConfig.pretrained")
    return directory


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
