"""Items to encode: captions, maps, clips or a data set, checked and cut into batches."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clipseq.data import Clip, MapDataset
from clipseq.encoders import Tower
from clipseq.encoders.frames import first_not_finite
from clipseq.encoders.groups import caption_groups
from clipseq.errors import suggest
from clipseq.retrieval.ragged import Ids
from clipseq.retrieval.sides import side_of, views_of

if TYPE_CHECKING:
    from clipseq.model import CLIP

Maps = dict[str, Tensor]

_READ_AT_ONCE = 1024
"""Number of captions that are tokenized together, to learn their lengths."""


class Items(ABC):
    """Items of one side, in the order of the caller.

    Attributes:
        ids: id of each item.
        place: (N,) item i is the one that `load` knows as ``place[i]``; equal captions share one.
        kinds: what items must have in common to share a batch, one value for each loaded item.
        lengths: length of each loaded item, by which they are sorted.
    """

    ids: Ids
    place: Tensor
    kinds: Sequence[Hashable]
    lengths: Sequence[int]

    @abstractmethod
    def load(self, places: Sequence[int]) -> tuple[Any, Tensor | None]:
        """Return a batch of items as their tower reads it, and their lengths if it takes any."""

    def batches(self, size: int) -> Iterator[list[int]]:
        """Yield the items `size` at a time, the longest first, so that a batch has little padding.

        The largest batch comes first: if it does not fit into memory, that is known at once.
        """
        groups: dict[Hashable, list[int]] = {}
        for place, kind in enumerate(self.kinds):
            groups.setdefault(kind, []).append(place)
        for group in groups.values():
            group.sort(key=lambda place: -self.lengths[place])
            for start in range(0, len(group), size):
                yield group[start : start + size]


def read_items(model: "CLIP", tower: Tower, items: Any) -> Items:
    """Check the items of one side and return them, ready to be encoded in batches.

    Raises:
        TypeError, ValueError, DataError: see `CLIP.encode`; the error names the item.
    """
    if not isinstance(items, MapDataset | list | tuple):
        hint = f"write [{items!r}]" if isinstance(items, str) else "pass a list of them"
        raise TypeError(
            f"items must be a list of {_kinds(tower)}, or a data set, got {type(items).__name__}; "
            f"{hint}"
        )
    if len(items) == 0:
        raise ValueError("items must hold at least one item, got an empty list")
    if tower.is_signal:
        return Signals(model, tower, items)
    return Captions(model, tower, items)


def _kinds(tower: Tower) -> str:
    return "arrays (F, T), dictionaries of them, or clips" if tower.is_signal else "captions"


class Captions(Items):
    """Captions, of which equal ones are encoded once, so that rounding cannot distinguish them.

    Captions are equal if the tower reads the same token ids.
    """

    def __init__(self, model: "CLIP", tower: Tower, items: Any) -> None:
        if isinstance(items, MapDataset):
            side_of(tower, model.names, items)
            captions, self.ids = items.captions, Ids.of(items.ids)
        else:
            captions = [item.caption if isinstance(item, Clip) else item for item in items]
            self.ids = _ids(items)
        if tower.tokenizer is not None:
            for i, caption in enumerate(captions):
                if not isinstance(caption, str):
                    raise TypeError(
                        f"items[{i}] must be a caption, got {type(caption).__name__}; "
                        f"{tower.name!r} is a text"
                    )
        keys, lengths = _tokenized(tower, captions)
        firsts: dict[Hashable, int] = {}
        for i, key in enumerate(keys):
            firsts.setdefault(key, i)
        places = {key: place for place, key in enumerate(firsts)}
        self.place = torch.tensor([places[key] for key in keys])
        self._captions = [captions[i] for i in firsts.values()]
        self.lengths = [lengths[i] for i in firsts.values()]
        self.kinds = [None] * len(self.lengths)

    def load(self, places: Sequence[int]) -> tuple[list[Any], None]:
        return [self._captions[place] for place in places], None


def _tokenized(tower: Tower, captions: Sequence[Any]) -> tuple[list[Hashable], list[int]]:
    """Return for each caption a key, equal for equal token ids, and its number of tokens."""
    keys: list[Hashable] = []
    lengths: list[int] = []
    for start in range(0, len(captions), _READ_AT_ONCE):
        some = list(captions[start : start + _READ_AT_ONCE])
        try:
            values, mask = tower.read(some)
        except (TypeError, ValueError):
            _raise_for_one(tower, some, start)
            raise
        groups = caption_groups(values, mask)
        if groups is None:  # other items than captions, for a user's module
            keys += range(start, start + len(some))
            lengths += [0] * len(some)
            continue
        keys += groups.tolist()
        if mask is not None:
            lengths += mask.sum(1).tolist()
        else:
            lengths += [len(caption) for caption in some]
    return keys, lengths


def _raise_for_one(tower: Tower, captions: Sequence[Any], start: int) -> None:
    """Raise the error of the first caption that the tower refuses, with its place in the list."""
    for i, caption in enumerate(captions, start):
        try:
            tower.read([caption])
        except (TypeError, ValueError) as error:
            named = str(error).replace(f"{tower.name} caption 0", f"items[{i}]")
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(named) from None


class Signals(Items):
    """Signals: each item has one or more maps with time last, and its own number of frames."""

    def __init__(self, model: "CLIP", tower: Tower, items: Any) -> None:
        self._tower = tower
        self._known = views_of(tower)
        self._paired_first = tower is model.y_encoder and model.x_encoder.is_signal
        self._second: bool | None = None
        if isinstance(items, MapDataset):
            side = side_of(tower, model.names, items)
            self._second = side.modality != items.modality
            self.ids = Ids.of(items.ids)
        else:
            self.ids = _ids(items)
        self._items = items
        self.place = torch.arange(len(items))
        self.kinds, self.lengths = [], []
        if isinstance(items, MapDataset):  # whose clips are checked, and share their views
            self._maps(0)
            self.kinds, self.lengths = [None] * len(items), items.frame_counts(side.modality)
            return
        for i in range(len(items)):
            maps = self._maps(i)
            # Items with other views, or with other axes before time, go into other batches.
            self.kinds.append(tuple((view, values.shape[:-1]) for view, values in maps.items()))
            self.lengths.append(next(iter(maps.values())).shape[-1])

    def load(self, places: Sequence[int]) -> tuple[Any, Tensor | None]:
        longest = max(self.lengths[place] for place in places)
        weight = next(self._tower.parameters(), torch.empty(0))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        batch: Maps = {}
        for row, place in enumerate(places):
            for view, values in self._maps(place).items():
                if view not in batch:
                    batch[view] = torch.zeros(len(places), *values.shape[:-1], longest, dtype=dtype)
                batch[view][row, ..., : values.shape[-1]] = values
        bad = first_not_finite(batch, None)
        if bad is not None:
            view, row = bad
            raise ValueError(
                f"items[{places[row]}]{_named(view)} must be finite, got NaN or infinity; correct "
                "or leave out that recording"
            )
        lengths = torch.tensor([self.lengths[place] for place in places])
        batch = {view: values.to(weight.device) for view, values in batch.items()}
        return batch.get("", batch), lengths.to(weight.device)

    def _maps(self, i: int) -> Maps:
        """Return the maps of one item that the tower takes, checked; "" names one without name."""
        item = self._items[i]
        if isinstance(item, Clip):
            item = self._of_clip(i, item)
        if isinstance(item, Mapping):
            if not item:
                raise ValueError(f"items[{i}] must have at least one map, got an empty dictionary")
            maps = {view: _tensor(f"items[{i}] view {view!r}", v) for view, v in item.items()}
        else:
            maps = {"": _tensor(f"items[{i}]", item, _kinds(self._tower))}
            if self._known is not None:
                if len(self._known) > 1:
                    raise ValueError(
                        f"items[{i}] must be a dictionary of maps, as {self._tower.name!r} has "
                        f"{len(self._known)} views, got one array; name its view, which is one of "
                        f"{', '.join(self._known)}"
                    )
                maps = {next(iter(self._known)): maps[""]}
        self._check(i, maps)
        return maps

    def _of_clip(self, i: int, clip: Clip) -> Mapping[str, Any]:
        signals = [clip.paired, clip.signal] if self._paired_first else [clip.signal, clip.paired]
        if self._second is not None:
            signals = [clip.paired if self._second else clip.signal]
        for maps in signals:
            kept = {v: m for v, m in maps.items() if self._known is None or v in self._known}
            if kept:
                return kept
        listed = ", ".join(self._known or ())
        raise ValueError(
            f"items[{i}], the clip {clip.id!r}, must have a view that {self._tower.name!r} takes "
            f"({listed}), got {', '.join([*clip.signal, *clip.paired])}"
        )

    def _check(self, i: int, maps: Maps) -> None:
        for view, values in maps.items():
            named = f"items[{i}]{_named(view)}"
            if self._known is not None:
                if view not in self._known:
                    known = ", ".join(self._known)
                    raise ValueError(
                        f"items[{i}] must have views among {known}, got {view!r}"
                        f"{suggest(str(view), self._known)}"
                    )
                bins, shape = self._known[view], tuple(values.shape)
                if values.ndim != 2 or shape[0] != bins:
                    hint = "; time comes last: transpose it" if shape[1:] == (bins,) else ""
                    raise ValueError(f"{named} must be ({bins}, T), got {shape}{hint}")
            if values.ndim < 1 or 0 in values.shape:
                raise ValueError(
                    f"{named} must have at least one frame, got {tuple(values.shape)}; leave that "
                    "item out"
                )
        frames = {view: values.shape[-1] for view, values in maps.items()}
        if len(set(frames.values())) > 1:
            raise ValueError(f"items[{i}] must have views of the same T, got {frames}")


def _named(view: str) -> str:
    return f" view {view!r}" if view else ""


def _tensor(named: str, values: Any, kinds: str = "an array (F, T)") -> Tensor:
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(f"{named} must be one of {kinds}, got {type(values).__name__}")
    if isinstance(values, np.ndarray):
        if not np.issubdtype(values.dtype, np.floating):
            raise TypeError(f"{named} must be floating point, got {values.dtype}")
        # torch takes neither negative strides nor another byte order, and warns of read-only data.
        native = values.dtype.newbyteorder("=")
        fits = values.flags.writeable and all(stride >= 0 for stride in values.strides)
        values = torch.from_numpy(
            values if fits and native == values.dtype else values.astype(native)
        )
    if not values.is_floating_point():
        raise TypeError(f"{named} must be floating point, got {values.dtype}")
    return values.detach()


def _ids(items: Sequence[Any]) -> Ids:
    return Ids.of(item.id if isinstance(item, Clip) else str(i) for i, item in enumerate(items))
