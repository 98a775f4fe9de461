"""Encoding of a split, each side of a clip once, and scores of any pairs of the encoded sides."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.data import Clip, MapDataset, collate
from clipseq.data.clip import TEXT
from clipseq.encoders import SignalConfig
from clipseq.engine.unit_vectors import cosines, unit
from clipseq.errors import DataError
from clipseq.sequences import Sequences, join

if TYPE_CHECKING:
    from clipseq.model import CLIP


@attrs.frozen(eq=False)
class Encoded:
    """One side of a split: pooled features, and the sequences if the model compares them."""

    pooled: Float[Tensor, "N D"]
    sequences: Sequences | None

    def __len__(self) -> int:
        return len(self.pooled)

    def take(self, index: Tensor | slice) -> "Encoded":
        """Return the items at `index`, padded only to the longest of them."""
        if isinstance(index, Tensor):
            index = index.to(self.pooled.device)
        if self.sequences is None:
            return Encoded(self.pooled[index], None)
        values, mask = self.sequences.values[index], self.sequences.mask[index]
        steps = int(mask.any(dim=0).nonzero().amax()) + 1
        return Encoded(self.pooled[index], Sequences(values[:, :steps], mask[:, :steps]))


@attrs.frozen
class Side:
    """One side of a model and the modality of a data set that it takes.

    Attributes:
        name: name of the side, one of the model's `names`.
        modality: name of the side's data in the data set, "text" for captions.
        views: views that the side takes; None: all.
    """

    name: str
    modality: str
    views: frozenset[str] | None = None

    @property
    def is_text(self) -> bool:
        """True if the side takes captions."""
        return self.modality == TEXT

    def cut(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a collated batch that this side takes, under the side's name."""
        values = batch[self.modality]
        if self.is_text:
            return {self.name: values}
        kept = {v: maps for v, maps in values.items() if self.views is None or v in self.views}
        return {self.name: kept, f"{self.name}_lengths": batch[f"{self.modality}_lengths"]}


def sides(model: "CLIP", dataset: MapDataset) -> tuple[Side, Side]:
    """Match the x and the y side of `model` to the modalities of `dataset`.

    Raises:
        DataError: a side of the model fits no modality of the data set; the error names both.
    """
    x, y = (
        _side(tower, name, model, dataset)
        for tower, name in zip((model.x_encoder, model.y_encoder), model.names, strict=True)
    )
    return x, y


def _side(tower: Any, name: str, model: "CLIP", dataset: MapDataset) -> Side:
    modality = name if tower.is_signal else TEXT
    if modality not in dataset.modalities or tower.is_signal != (modality != TEXT):
        kind = f"{name!r}" if tower.is_signal else "captions ('text')"
        raise DataError(
            f"the modalities of the data set must include both sides of the model "
            f"({', '.join(model.names)}), got {', '.join(dataset.modalities)} without {kind}; "
            "give encoder_cfg or text_cfg the name of a modality, or choose another data set"
        )
    config = getattr(tower, "config", None)
    views = frozenset(config.views) if isinstance(config, SignalConfig) else None
    return Side(name, modality, views)


def collate_for(model: "CLIP", dataset: MapDataset) -> Callable[[Sequence[Clip]], dict[str, Any]]:
    """Return a `collate` that leaves out the views and signals that `model` does not take.

    Raises:
        DataError: a side of the model fits no modality of the data set.
    """
    x, y = sides(model, dataset)
    names: dict[str, Any] = {
        "modality": dataset.modality,
        "paired_modality": dataset.paired_modality,
    }

    def batch(clips: Sequence[Clip]) -> dict[str, Any]:
        whole = collate(clips, **names)
        return x.cut(whole) | y.cut(whole) | {"ids": whole["ids"]}

    return batch


def encode_side(model: "CLIP", side: Side, clips: MapDataset, *, batch_size: int = 64) -> Encoded:
    """Encode one side of every clip, for a signal `batch_size` clips at a time."""
    if side.is_text:
        return encode_captions(model, side.name, clips.captions)
    return encode_signals(model, side, clips, batch_size=batch_size)


@torch.no_grad()
def encode_signals(
    model: "CLIP", side: Side, clips: MapDataset, *, batch_size: int = 64
) -> Encoded:
    """Encode, in batches, the signal of every clip that `side` takes."""
    device = next(model.parameters()).device
    names: dict[str, Any] = {"modality": clips.modality, "paired_modality": clips.paired_modality}
    parts = []
    for start in range(0, len(clips), batch_size):
        stop = min(start + batch_size, len(clips))
        batch = side.cut(collate([clips[i] for i in range(start, stop)], **names))
        maps = {view: values.to(device) for view, values in batch[side.name].items()}
        lengths = batch[f"{side.name}_lengths"].to(device)
        parts.append(Encoded(*model.encode_batch(side.name, maps, lengths=lengths)))
    return _joined(parts)


@torch.no_grad()
def encode_captions(
    model: "CLIP", name: str, captions: Sequence[str], *, batch_size: int = 256
) -> Encoded:
    """Encode captions with the side `name`, in batches, and equal captions only once.

    Captions are equal if `CLIP.caption_groups` gives them the same integer.
    """
    groups = model.caption_groups(captions).tolist()
    firsts: dict[int, str] = {}
    for group, caption in zip(groups, captions, strict=True):
        firsts.setdefault(group, caption)
    places, unique = {group: i for i, group in enumerate(firsts)}, list(firsts.values())
    parts = [
        Encoded(*model.encode_batch(name, unique[start : start + batch_size]))
        for start in range(0, len(unique), batch_size)
    ]
    joined = _joined(parts)
    return joined.take(torch.tensor([places[group] for group in groups]))


@torch.no_grad()
def sequence_scores(
    model: "CLIP", x: Encoded, y: Encoded, *, block: int = 128
) -> Float[Tensor, "N M"]:
    """Score every x with every y by the model's sequence similarity, block by block."""
    rows = []
    for i in range(0, len(x), block):
        row = [
            _sequence_block(model, x.take(slice(i, i + block)), y.take(slice(j, j + block)))
            for j in range(0, len(y), block)
        ]
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


@torch.no_grad()
def pooled_scores(x: Encoded, y: Encoded) -> Float[Tensor, "N M"]:
    """Score every x with every y by the cosine of their pooled features."""
    return cosines(x.pooled, y.pooled).cpu()


@torch.no_grad()
def sequence_pair_scores(
    model: "CLIP", x: Encoded, y: Encoded, owner: Int[Tensor, "P"], *, clips: int = 8
) -> Float[Tensor, "P"]:
    """Score y[p] with only x[owner[p]] by the sequence similarity; `owner` must be ascending.

    A few clips at a time are scored with all of their captions: the pairs that are not needed cost
    less than one call per clip.
    """
    scores = torch.empty(len(owner))
    for start in range(0, len(x), clips):
        mine = ((owner >= start) & (owner < start + clips)).nonzero().flatten()
        if len(mine):
            some = x.take(slice(start, start + clips))
            block = _sequence_block(model, some, y.take(mine))
            scores[mine] = block[owner[mine] - start, torch.arange(len(mine))]
    return scores


@torch.no_grad()
def pooled_pair_scores(x: Encoded, y: Encoded, owner: Int[Tensor, "P"]) -> Float[Tensor, "P"]:
    """Score y[p] with x[owner[p]] by the cosine of their pooled features."""
    own = unit(x.pooled.float())[owner.to(x.pooled.device)]
    return (own * unit(y.pooled.float())).sum(dim=1).cpu()


def _sequence_block(model: "CLIP", x: Encoded, y: Encoded) -> Tensor:
    if x.sequences is None or y.sequences is None or model.sequence_loss_fn is None:
        raise ValueError(
            "model must compare sequences, got one that compares pooled features only; "
            "use pooled_scores"
        )
    one, two = x.sequences, y.sequences
    scores: Tensor = model.sequence_loss_fn.similarity_fn(
        one.values, two.values, one.mask, two.mask
    )
    return scores.float().cpu()


def _joined(parts: list[Encoded]) -> Encoded:
    pooled = torch.cat([part.pooled for part in parts])
    sequences = [part.sequences for part in parts if part.sequences is not None]
    if not sequences:
        return Encoded(pooled, None)
    return Encoded(pooled, join(sequences))
