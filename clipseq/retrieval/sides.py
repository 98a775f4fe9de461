"""The sides of a model, matched to the modalities of a data set."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from torch import nn

from clipseq.data import Clip, MapDataset, collate
from clipseq.data.clip import TEXT
from clipseq.encoders import SignalConfig, Tower
from clipseq.engine.options import check_kind
from clipseq.errors import DataError

if TYPE_CHECKING:
    from clipseq.model import CLIP


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
        TypeError: `model` is not a CLIP, or `dataset` is not a data set.
    """
    check_model(model)
    check_kind("dataset", dataset, MapDataset, "a MapDataset")
    x, y = (side_of(tower, model.names, dataset) for tower in model.towers)
    return x, y


def check_model(model: object) -> None:
    """Raise TypeError unless `model` has the two towers of a CLIP."""
    if not isinstance(model, nn.Module) or not hasattr(model, "towers"):
        raise TypeError(f"model must be a clipseq.CLIP, got {type(model).__name__}")


def side_of(tower: Tower, names: Sequence[str], dataset: MapDataset) -> Side:
    """Match one side to a modality of `dataset`; `names` are those of both sides, for the error.

    Raises:
        DataError: it fits no modality of the data set.
    """
    name = tower.name
    modality = name if tower.is_signal else TEXT
    if modality not in dataset.modalities or tower.is_signal != (modality != TEXT):
        kind = f"{name!r}" if tower.is_signal else "captions ('text')"
        raise DataError(
            f"the modalities of the data set must include both sides of the model "
            f"({', '.join(names)}), got {', '.join(dataset.modalities)} without {kind}; "
            "give encoder_cfg or text_cfg the name of a modality, or choose another data set"
        )
    views = views_of(tower)
    return Side(name, modality, None if views is None else frozenset(views))


def views_of(tower: Tower) -> Mapping[str, int] | None:
    """Return the views that a tower takes, with their numbers of bins; None if it may take any."""
    config = getattr(tower, "config", None)
    return config.views if isinstance(config, SignalConfig) else None


@attrs.frozen
class Collate:
    """A `collate` that leaves out the views and signals that a model does not take.

    It is a class so that it can be pickled: worker processes that are spawned, and not forked, get
    a copy of it.

    Attributes:
        x: the side of x.
        y: the side of y.
        modality: name of the data set's signal.
        paired_modality: name of its second signal, or None.
    """

    x: Side
    y: Side
    modality: str
    paired_modality: str | None

    def __call__(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """Return the batch of `clips` that the model takes, and their ids."""
        whole = collate(clips, modality=self.modality, paired_modality=self.paired_modality)
        return self.x.cut(whole) | self.y.cut(whole) | {"ids": whole["ids"]}


def collate_for(model: "CLIP", dataset: MapDataset) -> Collate:
    """Return a `collate` that leaves out the views and signals that `model` does not take.

    Raises:
        DataError: a side of the model fits no modality of the data set.
    """
    return Collate(*sides(model, dataset), dataset.modality, dataset.paired_modality)
