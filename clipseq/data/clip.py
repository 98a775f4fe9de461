"""Clip: the maps of one recording, the caption that describes it, and where it came from."""

from collections.abc import Mapping

import attrs
import numpy as np
from jaxtyping import Num

from clipseq.data.header import Header

SPLITS = ("train", "val", "test", "zeroshot")
"""Names of the splits. `zeroshot` holds clips of one action and may share sources with `test`."""

TEXT = "text"
"""Name of the captions among the modalities of a data set."""

Maps = dict[str, Num[np.ndarray, "_ _"]]


@attrs.frozen(eq=False, kw_only=True)
class Clip:
    """One signal with a caption, with a second signal that was recorded with it, or with both.

    A signal is a map (F, T) for each of its views: a view is one way to look at the same recording
    (range over time, Doppler over time, ...), F its bins or channels, and T its frames.

    Attributes:
        id: name of the clip, unique in its data set.
        signal: maps by name of the view, each (F, T) and all with the same T.
        caption: description of the actions in order; may be empty in a clip with a second signal.
        paired: maps of the second signal, with its own views and T; `{}` without one.
        actions: names of the actions in order, `()` if unknown.
        spans: (start, stop) frame of each action in `signal`, stop excluded, `()` if unknown.
        permuted: the caption in the same wording with its actions in every other order, `()` if
            unknown.
        sources: the recordings (subjects, simulated persons, ...) that the clip was made from. A
            source belongs to only one of train, val and test.
        split: one of `SPLITS`.
        label: class name of a one-action clip, a key of the data set's `class_captions`, else None.
        header: names, rates and axes of the data set that the clip was taken from; None for a clip
            that does not come from one.
    """

    id: str
    signal: Maps = attrs.field(repr=False)
    caption: str = ""
    paired: Maps = attrs.field(factory=dict, repr=False)
    actions: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    permuted: tuple[str, ...] = attrs.field(default=(), repr=False)
    sources: tuple[str, ...] = ()
    split: str = "train"
    label: str | None = None
    header: Header | None = attrs.field(default=None, repr=False)

    @property
    def frames(self) -> int:
        """Number of frames of the signal, T."""
        return frame_count(self.signal)


def frame_count(maps: Mapping[str, np.ndarray]) -> int:
    """Return the number of frames T of the maps of one signal."""
    return next(iter(maps.values())).shape[1]
