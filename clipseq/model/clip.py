"""CLIP with two towers, which keeps their two sequences and compares them."""

from collections.abc import Mapping
from typing import Any, SupportsIndex

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipseq.distributed.sharding import gathers_weights
from clipseq.encoders import Inputs, SignalConfig, TextConfig, Tokenizer, Tower
from clipseq.encoders.groups import caption_groups
from clipseq.encoders.inputs import batch_size
from clipseq.encoders.micro_batches import encode_in_micro_batches
from clipseq.engine.options import check_kind, positive_integer
from clipseq.engine.unit_vectors import cosines
from clipseq.errors import names_options, suggest
from clipseq.model.at_work import AtWork
from clipseq.model.batches import read_batch
from clipseq.model.config import ModelConfig
from clipseq.model.construction import make_pair_loss, make_sequence_loss, make_towers
from clipseq.model.lengths import warn_of_degenerate
from clipseq.model.loading import LoadsPretrained
from clipseq.model.metrics import norms, part_weights
from clipseq.model.saved import CardFacts
from clipseq.sequence_loss import SequenceLoss
from clipseq.sequences import Sequences

Pooled = Float[Tensor, "B D"]
Output = tuple[Pooled, Sequences | None]


class CLIP(AtWork, LoadsPretrained):
    """Two towers and a contrastive loss, over pooled features and over sequences.

    >>> signal = SignalConfig(views={"doppler_time": 64}, patch_frames=4)
    >>> model = CLIP(signal, transformer_width=64)
    >>> loss = model.training_step({"radar": torch.randn(2, 64, 40), "text": ["walks", "waves"]})
    >>> loss.backward()

    ``loss_total = (1 - w)·loss_clip + w·loss_seq`` with w = `sequence_similarity_weight`. With
    w = 0 it is plain CLIP: nothing is computed from the sequences, and loss_seq is not reported.
    With w = 1, loss_clip is reported but has no effect on training.

    The model has two sides, x and y. Each is a signal, a text, or a user's module; by default, x is
    a signal named "radar" and y a text named "text". The names are the keys of a batch and appear
    in metrics and error texts.

    Args:
        encoder_cfg: the tower of x: a `SignalConfig`, a `TextConfig`, or a dictionary of the fields
            of either (with ``tower="text"`` for a text); or a module that returns `Sequences` (see
            `ModuleTower`). If the module has an attribute `name`, that is the side's name.
        text_cfg: the tower of y, likewise, except that a dictionary means a `TextConfig`, unless it
            has ``tower="signal"``.
        context_length: largest number of tokens of a caption.
        transformer_width: D of all features, pooled and in sequence.
        transformer_layers: number of blocks of each tower.
        transformer_heads: number of attention heads of each block.
        temperature: sets the initial value of the learnable scales, 1 / temperature; finite, at
            least 0.01. A loss with its own initial scale, such as SigLIP's 10, ignores it.
        use_siglip: shorthand for ``loss="siglip"``.
        loss: any registered loss, for pooled features and for sequences: "clip" (InfoNCE),
            "siglip", or one that a plugin offers.
        loss_options: options of that loss.
        use_sequence_similarity: False: plain CLIP, without the parameters of a similarity; the same
            seed gives the towers the same initial weights.
        sequence_similarity_type: any registered similarity.
        sequence_similarity_weight: w, in [0, 1]; may be changed while training. A loss of pooled
            features that counts more makes the towers learn clips as a whole, which transfers
            less to new people and places.
        sequence_similarity_options: options of that similarity.
        tokenizer: turns captions into ids, e.g. from `train_tokenizer`. None: byte by byte.

    Attributes:
        config: all of these options, as a `ModelConfig`.
        x_encoder: the tower of x.
        y_encoder: the tower of y.
        metrics: after each `training_step`, name -> detached scalar: loss_clip, loss_seq,
            loss_total, scale and seq_scale; bias and seq_bias with SigLIP; weight/<part> with
            ``combined``; and feature norms (norm/...) if `_log_norm_stats` is set.
        sequence_loss_fn: the `SequenceLoss`, whose `similarity_fn` is the similarity; or None.
        card: facts for the model card that `save_pretrained` writes, such as the licence.
        micro_batch: None, or the largest number of items that `training_step` encodes at a time,
            for batches larger than memory: gradient caching (arXiv:2101.06983). The loss is still
            that of the whole batch; it and the gradients are the same except for rounding and the
            draws of dropout. Memory: one micro-batch, the towers' outputs for the whole batch, and
            the loss. Time: one more forward of the towers. It may be changed at any time; a value
            that is not a positive whole number raises ValueError.

    Raises:
        ConfigError: an unknown or ill-typed key in a dictionary; an option that does not have its
            annotated type (numpy's numbers, and an int for a float, are fine); two equal names.
        UnknownSimilarityError, UnknownLossError, TypeError, ValueError: a similarity, a loss or one
            of their options does not exist; a value is out of its range.
    """

    @names_options()
    def __init__(
        self,
        encoder_cfg: SignalConfig | TextConfig | Mapping[str, Any] | nn.Module | None = None,
        text_cfg: SignalConfig | TextConfig | Mapping[str, Any] | nn.Module | None = None,
        *,
        context_length: int = 512,
        transformer_width: int = 512,
        transformer_layers: int = 6,
        transformer_heads: int = 8,
        temperature: float = 0.07,
        use_siglip: bool = False,
        loss: str = "clip",
        loss_options: Mapping[str, Any] | None = None,
        use_sequence_similarity: bool = True,
        sequence_similarity_type: str = "combined",
        sequence_similarity_weight: float = 0.9,
        sequence_similarity_options: Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        arguments = locals()  # options are listed only in the signature and in ModelConfig
        super().__init__()
        names = [field.name for field in attrs.fields(ModelConfig)]
        self.config = ModelConfig(**{name: arguments[name] for name in names})
        self.micro_batch = None
        self.metrics: dict[str, Tensor] = {}
        self._log_norm_stats = False
        self._lengths_checked = False
        self.card = CardFacts()
        self._card_metrics = None  # those of an earlier card, while the weights are the same

        self.x_encoder, self.y_encoder = make_towers(self.config)
        self.clip_loss_fn = make_pair_loss(self.config)
        # Built last, and with the random state restored, so that the towers' weights and all later
        # draws are the same with and without it.
        self.sequence_loss_fn: SequenceLoss | None = None
        if self.config.use_sequence_similarity:
            with torch.random.fork_rng(devices=[]):
                self.sequence_loss_fn = make_sequence_loss(self.config)

    @property
    def towers(self) -> tuple[Tower, Tower]:
        """The towers of x and of y."""
        return self.x_encoder, self.y_encoder

    @property
    def names(self) -> tuple[str, str]:
        """The names of x and of y."""
        return self.x_encoder.name, self.y_encoder.name

    @property
    def text_tower(self) -> Tower | None:
        """The tower that reads text: that of y, else that of x, or None."""
        towers = (self.y_encoder, self.x_encoder)
        return next((tower for tower in towers if not tower.is_signal), None)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `text_tower`; None without one."""
        return None if self.text_tower is None else self.text_tower.tokenizer

    @property
    def sequence_similarity_weight(self) -> float:
        """w in ``loss_total = (1 - w)·loss_clip + w·loss_seq``."""
        return self.config.sequence_similarity_weight

    @sequence_similarity_weight.setter
    def sequence_similarity_weight(self, weight: float) -> None:
        self.config = attrs.evolve(self.config, sequence_similarity_weight=weight)

    @property
    def micro_batch(self) -> int | None:
        """Largest number of items that `training_step` encodes at a time; None: all of them."""
        return self._micro_batch

    @micro_batch.setter
    def micro_batch(self, size: SupportsIndex | None) -> None:
        number = positive_integer(size)
        if size is not None and number is None:
            raise ValueError(f"micro_batch must be a positive whole number or None, got {size!r}")
        self._micro_batch = number

    @property
    def compares_sequences(self) -> bool:
        """True if the sequences contribute: there is a similarity, and its weight is not 0."""
        return self.sequence_loss_fn is not None and self.sequence_similarity_weight > 0

    @gathers_weights
    def training_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Return the loss of one batch, for ``loss.backward()``, and set `metrics` to its parts.

        Every input is checked here, once. The first call warns of options that make the similarity
        a trivial one for these lengths; see `Similarity.degenerate`.

        Args:
            batch: x and y under their `names`, where x[i] belongs to y[i], and optionally
                ``<name>_lengths`` (signals) and ``<name>_mask``; see `forward`. Captions of y
                under ``<name>_negatives`` are extra negatives, such as captions with their actions
                in another order; see `PairLoss`. Other keys are ignored, unless one looks like a
                misspelling of these. Items whose captions have the same token ids (or are equal, if
                the text tower has no tokenizer) are positives of one another.
            batch_idx: number of the batch, for error texts.

        Returns:
            loss_total.

        Raises:
            ValueError: a side is missing, or a key is misspelt; an empty batch; sides of different
                sizes; NaN or infinity in a real frame (the error names view, item and batch); see
                also `forward`.
            TypeError: the batch is not a mapping; see also `forward`.
        """
        if self.training:
            self._card_metrics = None
        x, y = read_batch(batch, batch_idx, *self.towers, micro_batch=self.micro_batch)
        x_pooled, x_seq = self._encode(self.x_encoder, x)
        y_pooled, y_seq = self._encode(self.y_encoder, y)
        groups = self._groups(x, y, x_pooled.device)
        items = len(x_pooled)
        loss = loss_clip = self.clip_loss_fn(x_pooled, y_pooled, groups)
        metrics = {"loss_clip": loss_clip, **self.clip_loss_fn.metrics(items)}
        if self.sequence_loss_fn is not None and x_seq is not None and y_seq is not None:
            if not self._lengths_checked:
                self._lengths_checked = True
                name = self.config.sequence_similarity_type
                warn_of_degenerate(self.sequence_loss_fn, name, self.towers, x_seq, y_seq)
            loss_seq = self.sequence_loss_fn(
                x_seq.values, y_seq.values, x_seq.mask, y_seq.mask, groups
            )
            weight = self.sequence_similarity_weight
            loss = (1 - weight) * loss_clip + weight * loss_seq
            metrics["loss_seq"] = loss_seq
            own = self.sequence_loss_fn.pair_loss.metrics(items)
            metrics |= {f"seq_{name}": value for name, value in own.items()}
            metrics |= part_weights(self.sequence_loss_fn.similarity_fn)
        metrics["loss_total"] = loss
        if self._log_norm_stats:
            metrics |= norms(self.x_encoder.name, x_pooled, x_seq)
            metrics |= norms(self.y_encoder.name, y_pooled, y_seq)
        self.metrics = {name: value.detach() for name, value in metrics.items()}
        return loss

    def forward(
        self, x: Any, y: Any, /, *, return_sequences: bool = False, **extra: Any
    ) -> tuple[Tensor, ...]:
        """Return the pooled features of both sides, and with `return_sequences` the sequences too.

        Args:
            x: a dictionary of maps (B, F, T), or one map; see `SignalTower.read`.
            y: captions, or token ids (C, L); see `TextTower.read`.
            return_sequences: whether to return the sequences.
            extra: ``<name>_lengths`` (B,), the real frames of each item of a signal;
                ``<name>_mask`` bool, True at a real frame (B, T) or token id (C, L). With the
                default names: radar_lengths, radar_mask, text_mask.

        Returns:
            (B, D) and (C, D), not normalised; with `return_sequences` also (B, T', D) and
            (C, L', D), whose padded steps are zero. For their masks, use
            `encode_sequences(..., return_masks=True)`.

        Raises:
            TypeError: an unknown keyword; see also the towers.
            ValueError: see the towers.
        """
        check_kind("return_sequences", return_sequences, bool, "True or False")
        (x_pooled, x_seq), (y_pooled, y_seq) = self._both(x, y, extra, sequences=return_sequences)
        if x_seq is None or y_seq is None:
            return x_pooled, y_pooled
        return x_pooled, y_pooled, x_seq.values, y_seq.values

    @gathers_weights
    def encode_sequences(
        self, x: Any, y: Any, /, *, return_masks: bool = False, **extra: Any
    ) -> tuple[Tensor, ...]:
        """Return the sequences of both sides; arguments and errors as in `forward`.

        Returns:
            (B, T', D), (C, L', D), whose padded steps are zero; with `return_masks` also (B, T')
            and (C, L'), True at a real step.
        """
        check_kind("return_masks", return_masks, bool, "True or False")
        (_, x_seq), (_, y_seq) = self._both(x, y, extra, sequences=True)
        masks = (x_seq.mask, y_seq.mask) if return_masks else ()
        return x_seq.values, y_seq.values, *masks

    @gathers_weights
    def encode_batch(
        self, name: str, values: Any, *, lengths: Any = None, mask: Tensor | None = None
    ) -> Output:
        """Return one side's pooled features (B, D), and its sequences if the model compares them.

        Args:
            name: one of `names`.
            values: the items of that side; see `SignalTower.read` and `TextTower.read`.
            lengths: (B,) the real frames of each item of a signal.
            mask: bool, True at a real frame or token id.

        Raises:
            ValueError: an unknown name; see also the towers.
            TypeError: see the towers.
        """
        if not isinstance(name, str) or name not in self.names:
            known = ", ".join(self.names)
            raise ValueError(
                f"name must be one of {known}, got {name!r}{suggest(name, self.names)}"
            )
        tower = self.towers[self.names.index(name)]
        return tower(values, lengths=lengths, mask=mask, sequences=self.compares_sequences)

    @gathers_weights
    def similarity(self, x: Any, y: Any, /, **extra: Any) -> Float[Tensor, "B C"]:
        """Return the similarity of every x with every y, in [-1, 1]; arguments as in `forward`.

        It is the sequence similarity, with masks applied, or the cosine of the pooled features if
        the model does not compare sequences (see `compares_sequences`). It is computed in float32
        or better, even under autocast and in a model in half precision.
        """
        sequences = self.compares_sequences
        (x_pooled, x_seq), (y_pooled, y_seq) = self._both(x, y, extra, sequences=sequences)
        if self.sequence_loss_fn is None or x_seq is None or y_seq is None:
            return cosines(x_pooled, y_pooled)
        return self.sequence_loss_fn.scores(x_seq.values, y_seq.values, x_seq.mask, y_seq.mask)

    def _groups(self, x: Inputs, y: Inputs, device: torch.device) -> Int[Tensor, "B"] | None:
        if self.text_tower is None:
            return None
        groups = caption_groups(*(y if self.text_tower is self.y_encoder else x))
        return None if groups is None else groups.to(device)

    def _encode(self, tower: Tower, inputs: Inputs) -> Output:
        """Encode a checked batch, `micro_batch` items at a time."""
        sequences, size, batch = self.compares_sequences, self.micro_batch, batch_size(inputs)
        if size is None or (batch is not None and batch <= size):
            return tower(inputs, sequences=sequences)
        return encode_in_micro_batches(tower, inputs, size, sequences=sequences)

    def _both(self, x: Any, y: Any, extra: Mapping[str, Any], *, sequences: bool) -> list[Any]:
        known = [key for tower in self.towers for key in tower.optional_keys]
        for key in extra:
            if key not in known:
                raise TypeError(
                    f"keyword arguments must be among {', '.join(known)}, got {key!r}"
                    f"{suggest(key, known)}"
                )
        return [
            tower(
                values,
                lengths=extra.get(f"{tower.name}_lengths"),
                mask=extra.get(f"{tower.name}_mask"),
                sequences=sequences,
            )
            for tower, values in zip(self.towers, (x, y), strict=True)
        ]
