"""A split of a data set through both towers once, and the scores of any of its pairs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.data import Clip, MapDataset, collate
from clipseq.encoders import SignalConfig
from clipseq.engine.unit_vectors import cosines, unit
from clipseq.sequences import Sequences, join

if TYPE_CHECKING:
    from clipseq.model import CLIP


@attrs.frozen(eq=False)
class Encoded:
    """One modality of a split: pooled features, and the sequences where the model uses them."""

    pooled: Float[Tensor, "N D"]
    sequences: Sequences | None

    def __len__(self) -> int:
        return len(self.pooled)

    def take(self, index: Tensor | slice) -> "Encoded":
        """The items at `index`, their padding cut to the longest of them."""
        if self.sequences is None:
            return Encoded(self.pooled[index], None)
        values, mask = self.sequences.values[index], self.sequences.mask[index]
        steps = int(mask.any(dim=0).nonzero().amax()) + 1
        return Encoded(self.pooled[index], Sequences(values[:, :steps], mask[:, :steps]))


def collate_for(model: "CLIP") -> Callable[[Sequence[Clip]], dict[str, Any]]:
    """`collate`, leaving out the views of the data that `model` does not take."""
    config = getattr(model.x_encoder, "config", None)
    views = set(config.views) if isinstance(config, SignalConfig) else None

    def batch(clips: Sequence[Clip]) -> dict[str, Any]:
        whole = collate(clips)
        if views is not None:
            whole["radar"] = {name: m for name, m in whole["radar"].items() if name in views}
        return whole

    return batch


@torch.no_grad()
def encode_clips(model: "CLIP", clips: MapDataset, *, batch_size: int = 64) -> Encoded:
    """Every clip through the radar tower, in batches."""
    device = next(model.parameters()).device
    collate_views = collate_for(model)
    parts = []
    for start in range(0, len(clips), batch_size):
        stop = min(start + batch_size, len(clips))
        batch = collate_views([clips[i] for i in range(start, stop)])
        radar = {view: values.to(device) for view, values in batch["radar"].items()}
        lengths = batch["radar_lengths"].to(device)
        parts.append(Encoded(*model.encode_batch(model.names[0], radar, lengths=lengths)))
    return _joined(parts)


@torch.no_grad()
def encode_captions(model: "CLIP", captions: Sequence[str], *, batch_size: int = 256) -> Encoded:
    """Every caption through the text tower, in batches; those of one text to the model once."""
    groups = model.caption_groups(captions).tolist()
    firsts: dict[int, str] = {}
    for group, caption in zip(groups, captions, strict=True):
        firsts.setdefault(group, caption)
    places, unique = {group: i for i, group in enumerate(firsts)}, list(firsts.values())
    parts = [
        Encoded(*model.encode_batch(model.names[1], unique[start : start + batch_size]))
        for start in range(0, len(unique), batch_size)
    ]
    joined = _joined(parts)
    return joined.take(torch.tensor([places[group] for group in groups]))


@torch.no_grad()
def sequence_scores(
    model: "CLIP", radar: Encoded, text: Encoded, *, block: int = 128
) -> Float[Tensor, "N M"]:
    """The model's own sequence similarity of every clip with every caption, block by block."""
    rows = []
    for i in range(0, len(radar), block):
        row = [
            _sequence_block(model, radar.take(slice(i, i + block)), text.take(slice(j, j + block)))
            for j in range(0, len(text), block)
        ]
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


@torch.no_grad()
def pooled_scores(radar: Encoded, text: Encoded) -> Float[Tensor, "N M"]:
    """Cosine of the pooled features of every clip with every caption."""
    return cosines(radar.pooled, text.pooled).cpu()


@torch.no_grad()
def sequence_pair_scores(
    model: "CLIP", radar: Encoded, text: Encoded, owner: Int[Tensor, "P"], *, clips: int = 8
) -> Float[Tensor, "P"]:
    """Sequence similarity of caption p with clip ``owner[p]`` alone; owners in ascending order.

    A few clips are scored with all of their captions at a time: the pairs that nobody asked for
    cost less than a call for each clip.
    """
    scores = torch.empty(len(owner))
    for start in range(0, len(radar), clips):
        mine = ((owner >= start) & (owner < start + clips)).nonzero().flatten()
        if len(mine):
            some = radar.take(slice(start, start + clips))
            block = _sequence_block(model, some, text.take(mine))
            scores[mine] = block[owner[mine] - start, torch.arange(len(mine))]
    return scores


@torch.no_grad()
def pooled_pair_scores(
    radar: Encoded, text: Encoded, owner: Int[Tensor, "P"]
) -> Float[Tensor, "P"]:
    """Cosine of the pooled features of caption p and clip ``owner[p]``."""
    return (unit(radar.pooled.float())[owner] * unit(text.pooled.float())).sum(dim=1).cpu()


def _sequence_block(model: "CLIP", radar: Encoded, text: Encoded) -> Tensor:
    if radar.sequences is None or text.sequences is None or model.sequence_loss_fn is None:
        raise ValueError("this model compares pooled features only: it uses no sequences")
    x, y = radar.sequences, text.sequences
    scores: Tensor = model.sequence_loss_fn.similarity_fn(x.values, y.values, x.mask, y.mask)
    return scores.float().cpu()


def _joined(parts: list[Encoded]) -> Encoded:
    pooled = torch.cat([part.pooled for part in parts])
    sequences = [part.sequences for part in parts if part.sequences is not None]
    if not sequences:
        return Encoded(pooled, None)
    return Encoded(pooled, join(sequences))
