"""A summary of a run before its first step: what was found, and what will be done."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from clipseq.data import MapDataset
from clipseq.encoders import ModuleTower, SignalTower, Tower, TrainedTokenizer
from clipseq.model import CLIP
from clipseq.training.config import RunConfig


@attrs.frozen
class Lengths:
    """The smallest, the middle and the largest of some lengths.

    Attributes:
        least: the smallest.
        median: the median, rounded down.
        most: the largest.
    """

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, lengths: list[int]) -> "Lengths":
        """Return the summary of at least one length."""
        return cls(min(lengths), int(median(lengths)), max(lengths))

    def __str__(self) -> str:
        if self.least == self.most:
            return str(self.least)
        return f"{self.least} to {self.most} (median {self.median})"


@attrs.frozen
class SideSummary:
    """One side of the model and its training data.

    Attributes:
        name: name of the side.
        frames: frames of the clips; None for a text.
        steps: steps of the sequences that are compared: patches or tokens; None if the tower is a
            module whose steps are not known before it runs.
        views: number of bins of each view that the tower takes; empty for a text.
        vocabulary: number of token ids; None for a signal.
    """

    name: str
    frames: Lengths | None = None
    steps: Lengths | None = None
    views: Mapping[str, int] = attrs.field(factory=dict)
    vocabulary: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.frames is not None:
            parts.append(f"{self.frames} frames")
        if self.steps is not None:
            parts.append(f"{self.steps} {'tokens' if self.frames is None else 'steps'}")
        if self.views:
            parts.append("views " + ", ".join(f"{v} ({n})" for v, n in self.views.items()))
        if self.vocabulary is not None:
            parts.append(f"{self.vocabulary} token ids")
        return "; ".join(parts) or "a module"


@attrs.frozen
class Summary:
    """The findings of a run before its first step, and its plan.

    Attributes:
        clips: number of clips of each split.
        sides: the two sides of the model and the lengths of the training clips.
        unknown: words of each split that are unknown to the tokenizer, which reads all of them as
            the same token; splits without such words are left out.
        similarity: name of the similarity; None for plain CLIP.
        weight: w, the weight of the sequence loss.
        parameters: number of parameters.
        trainable: number of parameters that are trained.
        device: type of the device, such as "cpu".
        precision: as in the configuration.
        processes: number of processes.
        batch_size: clips in a batch.
        batches_per_epoch: batches in one pass over the training clips.
        steps: optimizer steps of the whole run.
        done: optimizer steps that are already finished.
        out: the run folder.
    """

    clips: Mapping[str, int]
    sides: tuple[SideSummary, SideSummary]
    unknown: Mapping[str, tuple[str, ...]]
    similarity: str | None
    weight: float
    parameters: int
    trainable: int
    device: str
    precision: str
    processes: int
    batch_size: int
    batches_per_epoch: int
    steps: int
    done: int
    out: Path

    def to_json(self) -> dict[str, Any]:
        """Return the summary as numbers, strings, lists and dictionaries."""
        return attrs.asdict(self) | {"out": str(self.out)}

    def as_text(self) -> str:
        """Return the summary as lines of a name and a description."""
        lines = {"clips": ", ".join(f"{count} {split}" for split, count in self.clips.items())}
        lines |= {side.name: str(side) for side in self.sides}
        for split, words in self.unknown.items():
            some = ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
            lines[f"unknown in {split}"] = (
                f"{len(words)} words that the training captions lack, all read as one token: {some}"
            )
        frozen = self.parameters - self.trainable
        compared = (
            f"{self.similarity} with weight {self.weight:g}" if self.similarity else "plain CLIP"
        )
        lines["model"] = (
            f"{self.parameters:,} parameters{f', {frozen:,} of them frozen' if frozen else ''}; "
            f"{compared}"
        )
        lines["device"] = f"{self.device}, {self.precision}, " + _count(self.processes, "process")
        lines["steps"] = (
            f"{self.steps} with {self.batch_size} clips, "
            f"{_count(self.batches_per_epoch, 'batch')} per epoch"
            + (f"; {self.done} are done" if self.done else "")
        )
        lines["out"] = str(self.out)
        width = max(map(len, lines)) + 2
        return "\n".join(f"{name + ':':<{width}}{text}" for name, text in lines.items())


def summarize(
    config: RunConfig,
    model: CLIP,
    dataset: MapDataset,
    *,
    device: str,
    processes: int,
    batch_size: int,
    batches_per_epoch: int,
    done: int,
) -> Summary:
    """Return the summary of a prepared run.

    Args:
        config: the run.
        model: the model.
        dataset: all clips.
        device: type of the device.
        processes: number of processes.
        batch_size: clips in a batch.
        batches_per_epoch: batches in one pass over the training clips.
        done: optimizer steps that are already finished.
    """
    training = dataset.subset("train")
    parameters = list(model.parameters())
    compares = model.sequence_loss_fn is not None
    return Summary(
        clips=dataset.splits,
        sides=(_side(model.x_encoder, training), _side(model.y_encoder, training)),
        unknown=_unknown(model, dataset),
        similarity=model.config.sequence_similarity_type if compares else None,
        weight=model.config.sequence_similarity_weight if compares else 0.0,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        device=device,
        precision=config.training.precision,
        processes=processes,
        batch_size=batch_size,
        batches_per_epoch=batches_per_epoch,
        steps=config.training.steps(batches_per_epoch),
        done=done,
        out=config.training.out,
    )


def _side(tower: Tower, dataset: MapDataset) -> SideSummary:
    if not tower.is_signal:
        counts = [
            int(count)
            for start in range(0, len(dataset), _CAPTIONS)
            for count in _token_counts(tower, dataset.captions[start : start + _CAPTIONS])
        ]
        ids = getattr(tower.tokenizer, "vocab_size", None)
        return SideSummary(tower.name, steps=Lengths.of(counts) if counts else None, vocabulary=ids)
    frames = dataset.frame_counts(tower.name)
    if not isinstance(tower, SignalTower):
        return SideSummary(tower.name, frames=Lengths.of(frames))
    patch = tower.config.patch_frames
    return SideSummary(
        tower.name,
        frames=Lengths.of(frames),
        steps=Lengths.of([-(-count // patch) for count in frames]),
        views=tower.config.views,
    )


_CAPTIONS = 256
"""Number of captions that are tokenized at a time."""


def _token_counts(tower: Tower, captions: list[str]) -> list[int]:
    if isinstance(tower, ModuleTower):
        return []
    mask = tower.read(captions).mask
    return [] if mask is None else mask.sum(1).tolist()


def _unknown(model: CLIP, dataset: MapDataset) -> dict[str, tuple[str, ...]]:
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, TrainedTokenizer):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for split in dataset.splits:
        captions = dict.fromkeys(dataset.subset(split).captions)
        words = dict.fromkeys(word for text in captions for word in tokenizer.unknown(text))
        if words:
            found[split] = tuple(words)
    return found


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
