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
    ModuleTower,
    RadarConfig,
    RadarTower,
    TextConfig,
    TextTower,
)
from clipseq.encoders.micro_batches import batch_size, encode_in_micro_batches
from clipseq.encoders.radar import Radar, first_not_finite, frame_mask
from clipseq.encoders.text import Text, check_captions
from clipseq.encoders.tokenizer import ByteTokenizer, Tokenizer
from clipseq.engine.unit_vectors import cosines
from clipseq.errors import closest
from clipseq.losses import ClipLoss, PairLoss, SigLipLoss
from clipseq.registry import get_similarity
from clipseq.sequence_loss import SequenceLoss
from clipseq.sequences import Sequences
from clipseq.similarity import Similarity

Pooled = Float[Tensor, "B D"]


class CLIP(GathersWeights):
    """Two towers and a contrastive loss, over pooled features and over sequences.

    >>> model = CLIP(RadarConfig(views={"doppler_time": 64}, patch_frames=4), transformer_width=64)
    >>> loss = model.training_step({"radar": torch.randn(2, 64, 40), "text": ["walks", "waves"]})
    >>> loss.backward()

    ``loss_total = (1 - w)·loss_clip + w·loss_seq`` with w = `sequence_similarity_weight`. With
    w = 0 it is plain CLIP: nothing is computed from the sequences, and loss_seq is not reported.
    With w = 1 loss_clip is reported and trains nothing.

    Args:
        encoder_cfg: the radar tower: a `RadarConfig`, a dictionary of its fields, or a module that
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
        encoder_cfg: RadarConfig | Mapping[str, Any] | nn.Module | None = None,
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

        self.radar_encoder = self._radar_tower(encoder_cfg)
        self.text_encoder = self._text_tower(text_cfg, tokenizer)
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

    def _radar_tower(self, config: Any) -> RadarTower | ModuleTower:
        if isinstance(config, nn.Module):
            return ModuleTower(config, width=self.transformer_width, side="radar")
        return RadarTower(
            structure(RadarConfig, {} if config is None else config, where="encoder_cfg"),
            width=self.transformer_width,
            layers=self.transformer_layers,
            heads=self.transformer_heads,
        )

    def _text_tower(
        self, config: Any, tokenizer: Tokenizer | None
    ) -> TextTower | HuggingFaceTextTower | ModuleTower:
        own = None if isinstance(config, nn.Module) else _text_config(config)
        if tokenizer is not None and (own is None or own.pretrained is not None):
            raise ValueError("this text tower brings its own tokenizer: leave out tokenizer=")
        if own is None:
            return ModuleTower(config, width=self.transformer_width, side="text")
        if own.pretrained is not None:
            return HuggingFaceTextTower(
                own, context_length=self.context_length, width=self.transformer_width
            )
        return TextTower(
            own,
            tokenizer=tokenizer or ByteTokenizer(),
            context_length=self.context_length,
            width=self.transformer_width,
            layers=self.transformer_layers,
            heads=self.transformer_heads,
        )

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
        """The text tower's tokenizer; None where the tower is a module of the user's own."""
        return getattr(self.text_encoder, "tokenizer", None)

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
        radar, text = _read_batch(batch, batch_idx)
        lengths, mask = batch.get("radar_lengths"), batch.get("radar_mask")
        text_mask = batch.get("text_mask")
        self._check_finite(radar, lengths, mask, batch_idx)

        radar_pooled, radar_seq = self._encode(
            self.radar_encoder, radar, lengths=lengths, mask=mask
        )
        text, text_mask = self._read(text, text_mask)
        text_pooled, text_seq = self._encode(self.text_encoder, text, mask=text_mask)
        groups = caption_groups(text, text_mask)
        if groups is not None:
            groups = groups.to(radar_pooled.device)

        loss = loss_clip = self.clip_loss_fn(radar_pooled, text_pooled, groups)
        metrics = {"loss_clip": loss_clip, **_pair_metrics("", self.clip_loss_fn, len(text_pooled))}
        if self.sequence_loss_fn is not None and radar_seq is not None and text_seq is not None:
            loss_seq = self.sequence_loss_fn(
                radar_seq.values, text_seq.values, radar_seq.mask, text_seq.mask, groups
            )
            weight = self.sequence_similarity_weight
            loss = (1 - weight) * loss_clip + weight * loss_seq
            metrics["loss_seq"] = loss_seq
            metrics |= _pair_metrics("seq_", self.sequence_loss_fn.pair_loss, len(text_pooled))
            metrics |= _part_weights(self.sequence_loss_fn.similarity_fn)
        metrics["loss_total"] = loss
        if self._log_norm_stats:
            metrics |= _norms("radar", radar_pooled, radar_seq)
            metrics |= _norms("text", text_pooled, text_seq)
        self.metrics = {name: value.detach() for name, value in metrics.items()}
        return loss

    def text_groups(self, captions: Sequence[str]) -> Int[Tensor, "B"]:
        """One integer for each caption, equal where they are one text to the model.

        That is where its tokenizer makes the same ids of them, whatever case and white space it
        folds; in a text tower without a tokenizer, where they are the same.

        Raises:
            TypeError, ValueError: see `TextTower.forward`.
        """
        # None is for what are no captions.
        return cast(Tensor, caption_groups(*self._read(check_captions(captions))))

    def _read(self, text: Any, mask: Tensor | None = None) -> tuple[Any, Tensor | None]:
        """The token ids of a whole batch, and which are real; a tower without tokenizer: as it is.

        Once and for all items, so that an error counts them from the start of the batch.
        """
        if self.tokenizer is None:
            return text, mask
        tower: Any = self.text_encoder
        return tower.tokenize(text, mask)

    def _encode(
        self, tower: nn.Module, values: Any, mask: Any = None, **along: Any
    ) -> tuple[Pooled, Sequences | None]:
        """What `tower` makes of a batch, `micro_batch` items at a time."""
        sequences, size, batch = self.compares_sequences, self.micro_batch, batch_size(values)
        if size is None or (batch is not None and batch <= size):
            return tower(values, mask=mask, sequences=sequences, **along)
        return encode_in_micro_batches(tower, values, size, sequences=sequences, mask=mask, **along)

    def _check_finite(self, radar: Any, lengths: Any, mask: Any, batch_idx: int) -> None:
        """Raise ValueError naming the first view and item with NaN or infinity in a real frame."""
        views = self.radar_encoder.views(radar)
        if not views:
            return
        if lengths is not None or mask is not None:
            mask = frame_mask(views, lengths, mask)
        # A few items at a time: looking at them takes as much memory as they do.
        batch = max(len(values) for values in views.values())
        size = self.micro_batch or batch
        for start in range(0, batch, size):
            some = {view: values[start : start + size] for view, values in views.items()}
            found = first_not_finite(some, None if mask is None else mask[start : start + size])
            if found is not None:
                view, item = found
                raise ValueError(
                    f"batch {batch_idx}: radar view {view!r} has NaN or infinity in a real frame "
                    f"of item {start + item}: mend or leave out that recording (padded frames may "
                    f"hold anything)"
                )

    def forward(
        self,
        radar: Radar | Any,
        text: Text | Any,
        *,
        radar_lengths: Tensor | None = None,
        radar_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        return_sequences: bool = False,
    ) -> tuple[Tensor, ...]:
        """Pooled features of both sides, and with `return_sequences` the sequences too.

        Args:
            radar: a dictionary of maps (B, F, T), or one; see `RadarTower.forward`.
            text: captions or token ids (C, L); see `TextTower.forward`.
            radar_lengths: (B,) real frames of each recording.
            radar_mask: (B, T) bool, instead of lengths.
            text_mask: (C, L) bool, for token ids.
            return_sequences: whether to return the sequences.

        Returns:
            (B, D), (C, D), not normalised; then (B, T', D), (C, L', D), whose padded steps are
            zero. `encode_sequences(..., return_masks=True)` gives the masks.

        Raises:
            TypeError, ValueError: see the towers.
        """
        radar_pooled, radar_seq = self.radar_encoder(
            radar, lengths=radar_lengths, mask=radar_mask, sequences=return_sequences
        )
        text_pooled, text_seq = self.text_encoder(text, mask=text_mask, sequences=return_sequences)
        if return_sequences:
            return radar_pooled, text_pooled, radar_seq.values, text_seq.values
        return radar_pooled, text_pooled

    @gathers_weights
    def encode_sequences(
        self,
        radar: Radar | Any,
        text: Text | Any,
        *,
        radar_lengths: Tensor | None = None,
        radar_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        return_masks: bool = False,
    ) -> tuple[Tensor, ...]:
        """The sequences of both sides; arguments and errors as in `forward`.

        Returns:
            (B, T', D), (C, L', D), whose padded steps are zero; with `return_masks` also (B, T')
            and (C, L'), True at a real step.
        """
        _, radar_seq = self.radar_encoder(radar, lengths=radar_lengths, mask=radar_mask)
        _, text_seq = self.text_encoder(text, mask=text_mask)
        if return_masks:
            return radar_seq.values, text_seq.values, radar_seq.mask, text_seq.mask
        return radar_seq.values, text_seq.values

    @gathers_weights
    def encode_radar(
        self,
        radar: Radar | Any,
        *,
        radar_lengths: Tensor | None = None,
        radar_mask: Tensor | None = None,
    ) -> tuple[Pooled, Sequences | None]:
        """Pooled features (B, D), and the sequences unless the model does not compare any."""
        return self.radar_encoder(
            radar, lengths=radar_lengths, mask=radar_mask, sequences=self.compares_sequences
        )

    @gathers_weights
    def encode_text(
        self, text: Text | Any, *, text_mask: Tensor | None = None
    ) -> tuple[Pooled, Sequences | None]:
        """Pooled features (C, D), and the sequences unless the model does not compare any."""
        return self.text_encoder(text, mask=text_mask, sequences=self.compares_sequences)

    @gathers_weights
    def similarity(
        self,
        radar: Radar | Any,
        text: Text | Any,
        *,
        radar_lengths: Tensor | None = None,
        radar_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Float[Tensor, "B C"]:
        """Every recording with every caption, in [-1, 1]; arguments and errors as in `forward`.

        The sequence similarity, masks honoured; in a model that compares no sequences (see
        `compares_sequences`) the cosine of the pooled features. In float32 or better, also under
        autocast and in a model of half precision.
        """
        sequences = self.compares_sequences
        radar_pooled, x = self.radar_encoder(
            radar, lengths=radar_lengths, mask=radar_mask, sequences=sequences
        )
        text_pooled, y = self.text_encoder(text, mask=text_mask, sequences=sequences)
        if self.sequence_loss_fn is None or x is None or y is None:
            return cosines(radar_pooled, text_pooled)
        return self.sequence_loss_fn.scores(x.values, y.values, x.mask, y.mask)

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


def _text_config(config: Any) -> TextConfig:
    return structure(TextConfig, {} if config is None else config, where="text_cfg")


def _read_batch(batch: Any, batch_idx: int) -> tuple[Any, Any]:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"batch {batch_idx} must be a dictionary with 'radar' and 'text', "
            f"got {type(batch).__name__}"
        )
    for key in ("radar", "text"):
        if key not in batch:
            raise ValueError(f"batch {batch_idx} has no {key!r}: it has {', '.join(batch)}")
    radar, text = batch["radar"], batch["text"]
    sizes = {"radar": batch_size(radar), "text": batch_size(text)}
    _check_keys(batch, batch_idx)
    for key, size in sizes.items():
        if size == 0:
            raise ValueError(f"batch {batch_idx} is empty: {key!r} holds no item")
    if None not in sizes.values() and sizes["radar"] != sizes["text"]:
        raise ValueError(
            f"batch {batch_idx}: radar[i] belongs to text[i], but 'radar' holds "
            f"{sizes['radar']} items and 'text' {sizes['text']}"
        )
    return radar, text


_OPTIONAL = ("radar_lengths", "radar_mask", "text_mask")
_MISNAMED = {
    "length": "radar_lengths",
    "lengths": "radar_lengths",
    "radar_len": "radar_lengths",
    "mask": "radar_mask",
    "masks": "radar_mask",
    "attention_mask": "text_mask",
}


def _check_keys(batch: Mapping[str, Any], batch_idx: int) -> None:
    # A slip of the pen would have padding trained on. Only that is refused: "radar_path" and
    # "text_id" are the caller's own, and so is "lengths" of who gives a mask, or of captions.
    for key, value in batch.items():
        if not isinstance(key, str) or key in _OPTIONAL:
            continue
        meant = _MISNAMED.get(key) or closest(key, _OPTIONAL, cutoff=0.88)
        if meant is None or not _may_be(meant, value):
            continue
        side = meant.partition("_")[0]
        if any(known in batch for known in _OPTIONAL if known.startswith(side)):
            continue
        if side == "text" and not isinstance(batch["text"], Tensor):
            continue  # captions need no mask
        raise ValueError(
            f"batch {batch_idx} has the unknown key {key!r}: did you mean {meant!r}? "
            f"(optional keys: {', '.join(_OPTIONAL)}); rename it, or leave it out"
        )


def _may_be(key: str, value: object) -> bool:
    """Whether lengths, or a mask, could look like this."""
    if isinstance(value, Tensor):
        return value.ndim == (1 if key == "radar_lengths" else 2) and not value.is_floating_point()
    return isinstance(value, list | tuple) and all(isinstance(item, int) for item in value)


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
