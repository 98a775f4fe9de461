"""CLIP over a radar tower and a text tower that keeps, and compares, the two sequences."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipseq.config import of_type, structure
from clipseq.distributed.sharding import GathersWeights, gathers_weights
from clipseq.encoders import (
    HuggingFaceTextTower,
    Inputs,
    ModuleTower,
    SignalConfig,
    SignalTower,
    TextConfig,
    TextTower,
    Tower,
)
from clipseq.encoders.inputs import batch_size
from clipseq.encoders.micro_batches import encode_in_micro_batches
from clipseq.encoders.text import check_captions
from clipseq.encoders.tokenizer import ByteTokenizer, Tokenizer
from clipseq.engine.unit_vectors import cosines
from clipseq.errors import ConfigError, nearest
from clipseq.losses import ClipLoss, PairLoss, SigLipLoss
from clipseq.model.batches import read_batch
from clipseq.registry import get_similarity
from clipseq.sequence_loss import SequenceLoss
from clipseq.sequences import Sequences
from clipseq.similarity import Similarity

Pooled = Float[Tensor, "B D"]


class CLIP(GathersWeights):
    """Two towers and a contrastive loss, over pooled features and over sequences.

    >>> model = CLIP(SignalConfig(views={"doppler_time": 64}, patch_frames=4), transformer_width=64)
    >>> loss = model.training_step({"radar": torch.randn(2, 64, 40), "text": ["walks", "waves"]})
    >>> loss.backward()

    ``loss_total = (1 - w)·loss_clip + w·loss_seq`` with w = `sequence_similarity_weight`. With
    w = 0 it is plain CLIP: nothing is computed from the sequences, and loss_seq is not reported.
    With w = 1 loss_clip is reported and trains nothing.

    Args:
        encoder_cfg: the radar tower: a `SignalConfig`, a dictionary of its fields, or a module that
            returns `Sequences` (see `ModuleTower`).
        text_cfg: the text tower, likewise with `TextConfig`.
        context_length: most tokens of a caption.
        transformer_width: D of all features, pooled and in sequence.
        transformer_layers: blocks of each tower.
        transformer_heads: attention heads of each block.
        temperature: where the learnable scales start, as 1 / temperature; finite, at least 0.01.
            SigLIP's start at its own 10 (and bias -10) whatever this is.
        use_siglip: both losses are SigLIP's instead of InfoNCE.
        use_sequence_similarity: False: plain CLIP, without a parameter more, and with the same
            weights from the same seed.
        sequence_similarity_type: any registered similarity.
        sequence_similarity_weight: w, in [0, 1]; may be changed while training.
        sequence_similarity_options: that similarity's options.
        tokenizer: turns captions into ids, e.g. from `train_tokenizer`. None: byte by byte.

    Attributes:
        metrics: after each `training_step`, name -> detached scalar: loss_clip, loss_seq,
            loss_total, scale, seq_scale, with SigLIP bias and seq_bias, weight/<part> of
            ``combined``, and feature norms (norm/...) if `_log_norm_stats` is set.
        sequence_loss_fn: the `SequenceLoss`, whose `similarity_fn` is the similarity; or None.
        micro_batch: None, or how many items of a batch `training_step` encodes at a time, for
            batches larger than memory: gradient caching (arXiv:2101.06983). The loss is that of
            the whole batch, and it and the gradients are the same as without, up to rounding and
            to which dropout is drawn. Memory is that of a micro-batch, of the towers' outputs for
            the whole batch, and of the loss; time is one more forward of the towers. May be
            changed at any time; a positive whole number, else a ValueError.

    Raises:
        ConfigError: an unknown or ill-typed key in a dictionary; an option of another type than
            it is annotated with (numpy's numbers, and an int for a float, are fine).
        UnknownSimilarityError, TypeError, ValueError: a similarity or an option that does not
            exist, a value out of its range.
    """

    def __init__(
        self,
        encoder_cfg: SignalConfig | Mapping[str, Any] | nn.Module | None = None,
        text_cfg: TextConfig | Mapping[str, Any] | nn.Module | None = None,
        *,
        context_length: int = 512,
        transformer_width: int = 512,
        transformer_layers: int = 6,
        transformer_heads: int = 8,
        temperature: float = 0.07,
        use_siglip: bool = False,
        use_sequence_similarity: bool = True,
        sequence_similarity_type: str = "combined",
        sequence_similarity_weight: float = 0.5,
        sequence_similarity_options: Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        super().__init__()
        # A value that is only like its type, as 1 is like True, would train, and then not load.
        self.context_length = of_type(int, context_length, where="context_length")
        self.transformer_width = of_type(int, transformer_width, where="transformer_width")
        self.transformer_layers = of_type(int, transformer_layers, where="transformer_layers")
        self.transformer_heads = of_type(int, transformer_heads, where="transformer_heads")
        self.temperature = of_type(float, temperature, where="temperature")
        self.use_siglip = of_type(bool, use_siglip, where="use_siglip")
        self.use_sequence_similarity = of_type(
            bool, use_sequence_similarity, where="use_sequence_similarity"
        )
        self.sequence_similarity_type = of_type(
            str, sequence_similarity_type, where="sequence_similarity_type"
        )
        self.sequence_similarity_weight = of_type(
            float, sequence_similarity_weight, where="sequence_similarity_weight"
        )
        options = {} if sequence_similarity_options is None else sequence_similarity_options
        self.sequence_similarity_options = lists_to_tuples(
            of_type(dict, options, where="sequence_similarity_options")
        )
        # SigLIP's scales do not start from it, InfoNCE's do, and must not start above their bound.
        fits = self.temperature > 0 if self.use_siglip else self.temperature >= 0.01
        if not (fits and self.temperature < math.inf):
            wanted = "positive" if self.use_siglip else "at least 0.01 (a scale of 100)"
            raise ValueError(f"temperature must be finite and {wanted}, got {temperature}")
        self.micro_batch = None
        self.metrics: dict[str, Tensor] = {}
        self._log_norm_stats = False

        self.x_encoder = self._tower(encoder_cfg, "signal", "encoder_cfg", tokenizer)
        self.y_encoder = self._tower(text_cfg, "text", "text_cfg", tokenizer)
        if self.x_encoder.name == self.y_encoder.name:
            raise ConfigError(
                f"the names of the two sides must differ, got {self.x_encoder.name!r} twice; "
                f"set name in encoder_cfg or text_cfg"
            )
        if tokenizer is not None and all(t.tokenizer is not tokenizer for t in self.towers):
            raise ValueError(
                "tokenizer must be None: no tower of this model needs one; leave it out"
            )
        self.clip_loss_fn: PairLoss
        if self.use_siglip:
            self.clip_loss_fn = SigLipLoss()
        else:
            self.clip_loss_fn = ClipLoss(init_scale=1 / self.temperature)
        # Last, and with the random state put back: the towers' weights, and all that is drawn
        # later, are the same with and without it.
        self.sequence_loss_fn: SequenceLoss | None = None
        if self.use_sequence_similarity:
            with torch.random.fork_rng(devices=[]):
                similarity = get_similarity(
                    self.sequence_similarity_type, **self.sequence_similarity_options
                )
                if self.use_siglip:
                    self.sequence_loss_fn = SequenceLoss(similarity, "siglip")
                else:
                    self.sequence_loss_fn = SequenceLoss(
                        similarity, init_scale=1 / self.temperature
                    )

    def _tower(self, config: Any, kind: str, argument: str, tokenizer: Tokenizer | None) -> Tower:
        width = self.transformer_width
        if isinstance(config, nn.Module):
            name = getattr(config, "name", None)
            name = name if isinstance(name, str) else _DEFAULT_NAMES[kind]
            signal = kind == "signal" or name != _DEFAULT_NAMES[kind]
            return ModuleTower(config, width=width, name=name, signal=signal)
        config = tower_config(config, kind, argument)
        size = {"width": width, "layers": self.transformer_layers, "heads": self.transformer_heads}
        if isinstance(config, SignalConfig):
            return SignalTower(config, **size)
        if config.pretrained is not None:
            return HuggingFaceTextTower(config, context_length=self.context_length, width=width)
        return TextTower(
            config,
            tokenizer=tokenizer or ByteTokenizer(),
            context_length=self.context_length,
            **size,
        )

    @property
    def towers(self) -> tuple[Tower, Tower]:
        """The towers of x and of y."""
        return self.x_encoder, self.y_encoder

    @property
    def names(self) -> tuple[str, str]:
        """The names of x and of y."""
        return self.x_encoder.name, self.y_encoder.name

    @property
    def sequence_similarity_weight(self) -> float:
        """w in ``loss_total = (1 - w)·loss_clip + w·loss_seq``."""
        return self._sequence_similarity_weight

    @sequence_similarity_weight.setter
    def sequence_similarity_weight(self, weight: float) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"sequence_similarity_weight must lie in [0, 1], got {weight}")
        self._sequence_similarity_weight = float(weight)

    @property
    def micro_batch(self) -> int | None:
        """Most items that `training_step` encodes at a time; None: all of them."""
        return self._micro_batch

    @micro_batch.setter
    def micro_batch(self, size: int | None) -> None:
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"micro_batch must be a positive whole number or None, got {size!r}")
        self._micro_batch = size

    @property
    def compares_sequences(self) -> bool:
        """Whether the sequences count for anything: there is a similarity, and its weight."""
        return self.sequence_loss_fn is not None and self.sequence_similarity_weight > 0

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the text tower (of y, if both are); None if no tower has one."""
        return self.y_encoder.tokenizer or self.x_encoder.tokenizer

    @gathers_weights
    def training_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The loss of one batch, for ``loss.backward()``; its parts are left in `metrics`.

        Args:
            batch: "radar" and "text", as `forward` takes them, where radar[i] belongs to text[i];
                optionally "radar_lengths" or "radar_mask", and "text_mask". Other keys are left
                alone, unless they look like one of these that is missing. Items whose captions are
                one text to the tokenizer (or, in a text tower without one, are the same) are
                positives of one another.
            batch_idx: number of the batch, for error texts.

        Returns:
            loss_total.

        Raises:
            ValueError: "radar" or "text" is missing, or a key is misspelt; an empty batch;
                batches of different sizes; NaN or infinity in a real frame (it names view, item
                and batch); and what `forward` raises.
            TypeError: the batch is no mapping; and what `forward` raises.
        """
        x, y = read_batch(batch, batch_idx, *self.towers, micro_batch=self.micro_batch)
        x_pooled, x_seq = self._encode(self.x_encoder, x)
        y_pooled, y_seq = self._encode(self.y_encoder, y)
        groups = self._groups(x, y)
        if groups is not None:
            groups = groups.to(x_pooled.device)

        loss = loss_clip = self.clip_loss_fn(x_pooled, y_pooled, groups)
        metrics = {"loss_clip": loss_clip, **_pair_metrics("", self.clip_loss_fn, len(y_pooled))}
        if self.sequence_loss_fn is not None and x_seq is not None and y_seq is not None:
            loss_seq = self.sequence_loss_fn(
                x_seq.values, y_seq.values, x_seq.mask, y_seq.mask, groups
            )
            weight = self.sequence_similarity_weight
            loss = (1 - weight) * loss_clip + weight * loss_seq
            metrics["loss_seq"] = loss_seq
            metrics |= _pair_metrics("seq_", self.sequence_loss_fn.pair_loss, len(y_pooled))
            metrics |= _part_weights(self.sequence_loss_fn.similarity_fn)
        metrics["loss_total"] = loss
        if self._log_norm_stats:
            metrics |= _norms(self.x_encoder.name, x_pooled, x_seq)
            metrics |= _norms(self.y_encoder.name, y_pooled, y_seq)
        self.metrics = {name: value.detach() for name, value in metrics.items()}
        return loss

    def caption_groups(self, captions: Sequence[str]) -> Int[Tensor, "B"]:
        """Return one integer for each caption, equal where they are one text to the model.

        They are where its tokenizer makes the same ids of them, whatever case and white space it
        folds; in a text tower without a tokenizer, where they are the same.

        Raises:
            TypeError, ValueError: see `TextTower.read`.
        """
        captions = check_captions(captions)
        tower = self._text_tower
        return cast(Tensor, caption_groups(*tower.read(captions)))  # None for non-captions

    @property
    def _text_tower(self) -> Tower:
        """The tower whose captions say which items are positives of one another."""
        return self.x_encoder if self.y_encoder.is_signal else self.y_encoder

    def _groups(self, x: Inputs, y: Inputs) -> Int[Tensor, "B"] | None:
        if self._text_tower.is_signal:  # two signals
            return None
        return caption_groups(*(y if self._text_tower is self.y_encoder else x))

    def _encode(self, tower: Tower, inputs: Inputs) -> tuple[Pooled, Sequences | None]:
        """Encode a batch, `micro_batch` items at a time."""
        sequences, size, batch = self.compares_sequences, self.micro_batch, batch_size(inputs)
        if size is None or (batch is not None and batch <= size):
            return tower(inputs, sequences=sequences)
        return encode_in_micro_batches(tower, inputs, size, sequences=sequences)

    def forward(
        self, x: Any, y: Any, /, *, return_sequences: bool = False, **along: Any
    ) -> tuple[Tensor, ...]:
        """Return the pooled features of both sides, and with `return_sequences` the sequences too.

        Args:
            x: a dictionary of maps (B, F, T), or one; see `SignalTower.read`.
            y: captions or token ids (C, L); see `TextTower.read`.
            return_sequences: whether to return the sequences.
            along: ``<name>_lengths`` (B,), the real frames of each item of a signal;
                ``<name>_mask`` (B, T) or (C, L) bool, for a signal instead of lengths, for a text
                with token ids. With the default names: radar_lengths, radar_mask, text_mask.

        Returns:
            (B, D), (C, D), not normalised; then (B, T', D), (C, L', D), whose padded steps are
            zero. `encode_sequences(..., return_masks=True)` gives the masks.

        Raises:
            TypeError, ValueError: see the towers.
        """
        sides = self._both(x, y, along, sequences=return_sequences)
        (x_pooled, x_seq), (y_pooled, y_seq) = sides
        if x_seq is None or y_seq is None:
            return x_pooled, y_pooled
        return x_pooled, y_pooled, x_seq.values, y_seq.values

    @gathers_weights
    def encode_sequences(
        self, x: Any, y: Any, /, *, return_masks: bool = False, **along: Any
    ) -> tuple[Tensor, ...]:
        """Return the sequences of both sides; arguments and errors as in `forward`.

        Returns:
            (B, T', D), (C, L', D), whose padded steps are zero; with `return_masks` also (B, T')
            and (C, L'), True at a real step.
        """
        (_, x_seq), (_, y_seq) = self._both(x, y, along, sequences=True)
        if return_masks:
            return x_seq.values, y_seq.values, x_seq.mask, y_seq.mask
        return x_seq.values, y_seq.values

    @gathers_weights
    def encode_batch(
        self, name: str, values: Any, *, lengths: Any = None, mask: Tensor | None = None
    ) -> tuple[Pooled, Sequences | None]:
        """Return one side's pooled features (B, D), and its sequences if the model compares any.

        Args:
            name: one of `names`.
            values: the side's batch; see `SignalTower.read` and `TextTower.read`.
            lengths: (B,) the real frames of each item of a signal.
            mask: bool, True at a real frame or token id.

        Raises:
            ValueError: another name; and what the tower raises.
            TypeError: see the towers.
        """
        if name not in self.names:
            raise ValueError(
                f"name must be one of {', '.join(self.names)}, got {name!r}"
                f"{nearest(name, self.names)}"
            )
        tower = self.towers[self.names.index(name)]
        return tower(values, lengths=lengths, mask=mask, sequences=self.compares_sequences)

    @gathers_weights
    def similarity(self, x: Any, y: Any, /, **along: Any) -> Float[Tensor, "B C"]:
        """Return the similarity of every x with every y, in [-1, 1]; arguments as in `forward`.

        The sequence similarity, masks honoured; in a model that compares no sequences (see
        `compares_sequences`) the cosine of the pooled features. In float32 or better, also under
        autocast and in a model of half precision.
        """
        sides = self._both(x, y, along, sequences=self.compares_sequences)
        (x_pooled, x_seq), (y_pooled, y_seq) = sides
        if self.sequence_loss_fn is None or x_seq is None or y_seq is None:
            return cosines(x_pooled, y_pooled)
        return self.sequence_loss_fn.scores(x_seq.values, y_seq.values, x_seq.mask, y_seq.mask)

    def _both(self, x: Any, y: Any, along: Mapping[str, Any], *, sequences: bool) -> Any:
        known = [key for tower in self.towers for key in tower.optional_keys]
        for key in along:
            if key not in known:
                raise TypeError(
                    f"keyword arguments must be among {', '.join(known)}, got {key!r}"
                    f"{nearest(key, known)}"
                )
        return [
            tower(
                values,
                lengths=along.get(f"{tower.name}_lengths"),
                mask=along.get(f"{tower.name}_mask"),
                sequences=sequences,
            )
            for tower, values in zip(self.towers, (x, y), strict=True)
        ]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model into `directory`; see `clipseq.model.pretrained.save`."""
        from clipseq.model import pretrained

        pretrained.save(self, Path(directory))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        encoder_cfg: nn.Module | None = None,
        text_cfg: nn.Module | None = None,
    ) -> "CLIP":
        """A model that `save_pretrained` wrote, in eval mode; see `pretrained.load`."""
        from clipseq.model import pretrained

        return pretrained.load(cls, Path(directory), encoder_cfg, text_cfg)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hugging Face hub; see `clipseq.model.pretrained.push`."""
        from clipseq.model import pretrained

        return pretrained.push(self, repo_id, **options)


def caption_groups(text: Any, mask: Tensor | None = None) -> Int[Tensor, "B"] | None:
    """One integer for each item, equal where the captions (or the real token ids) are.

    They are hashes of 64 bits, so they mean the same in every process of a distributed run. None
    for what are neither captions nor token ids.

    Args:
        text: captions, or token ids (B, L).
        mask: (B, L) bool, which ids are real. None: all.
    """
    if isinstance(text, Tensor):
        if text.ndim != 2 or text.is_floating_point():
            return None
        rows = text.cpu()
        real = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask.cpu()
        keys = [repr(row[r].tolist()) for row, r in zip(rows, real, strict=True)]
    elif isinstance(text, Sequence) and all(isinstance(caption, str) for caption in text):
        keys = list(text)
    else:
        return None
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])


def lists_to_tuples(value: Any) -> Any:
    # TOML and JSON know no tuples, where an option such as local's window takes a pair.
    if isinstance(value, Mapping):
        return {key: lists_to_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(lists_to_tuples(inner) for inner in value)
    return value


_DEFAULT_NAMES = {"signal": "radar", "text": "text"}
_CONFIGS = {"signal": SignalConfig, "text": TextConfig}


def tower_config(given: Any, kind: str, argument: str) -> SignalConfig | TextConfig:
    """Return the config that a mapping describes; its key `tower` names another kind."""
    if isinstance(given, SignalConfig | TextConfig):
        return given
    table = {} if given is None else given
    if isinstance(table, Mapping) and "tower" in table:
        kind = table["tower"]
        if kind not in _CONFIGS:
            raise ConfigError(f"{argument}.tower must be 'signal' or 'text', got {kind!r}")
        table = {key: value for key, value in table.items() if key != "tower"}
    return structure(_CONFIGS[kind], table, where=argument)


def _pair_metrics(prefix: str, loss: PairLoss, batch: int) -> dict[str, Tensor]:
    metrics = {f"{prefix}scale": loss.scale}
    if isinstance(loss, SigLipLoss):
        metrics[f"{prefix}bias"] = loss.bias(batch)
    return metrics


def _part_weights(similarity: Similarity) -> dict[str, Tensor]:
    """The weights of a similarity that is made of others, ``combined`` first of all."""
    weights = getattr(similarity, "weights", None)
    if not similarity.composite or not isinstance(weights, Mapping):
        return {}
    return {f"weight/{name}": torch.as_tensor(weight) for name, weight in weights.items()}


def _norms(side: str, pooled: Tensor, sequence: Sequences | None) -> dict[str, Tensor]:
    """Mean L2 norm of the pooled features, and of the real steps."""
    norms = {f"norm/{side}_pooled": pooled.detach().float().norm(dim=-1).mean()}
    if sequence is not None:
        steps = sequence.values.detach().float().norm(dim=-1)
        norms[f"norm/{side}_seq"] = steps.sum() / sequence.mask.sum()
    return norms
