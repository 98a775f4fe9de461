"""One clip: the maps a radar made of a scene, the caption that tells it, and where it came from."""

import attrs
import numpy as np
from jaxtyping import Num

SPLITS = ("train", "val", "test", "zeroshot")
"""A dataset's splits; `zeroshot` holds clips of one action and may share sources with `test`."""


@attrs.frozen(eq=False, kw_only=True)
class Clip:
    """A radar clip with its caption.

    Attributes:
        id: its name, given once in a dataset.
        radar: maps by view name, each (F, T): F bins, T frames, the same T in every view.
        caption: what happens, told in order.
        actions: names of the actions in order, `()` where unknown.
        spans: (start, stop) frame of each action, stop excluded, `()` where unknown.
        permuted: the caption's own wording with its actions in every other order, `()` where
            unknown.
        sources: the recordings (subjects, simulated persons, ...) the clip was made from: no
            source lies in two of train, val and test.
        split: one of `SPLITS`.
        label: class name of a one-action clip, a key of the dataset's `class_captions`, else None.
    """

    id: str
    radar: dict[str, Num[np.ndarray, "_ _"]] = attrs.field(repr=False)
    caption: str
    actions: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    permuted: tuple[str, ...] = attrs.field(default=(), repr=False)
    sources: tuple[str, ...] = ()
    split: str = "train"
    label: str | None = None

    @property
    def frames(self) -> int:
        """T, the number of frames."""
        return next(iter(self.radar.values())).shape[1]
