"""MapDataset: clips in memory, from a folder, a single .npz, or Python."""

import copy
import operator
import os
from collections.abc import Iterable, Mapping

import attrs
import numpy as np
from torch.utils.data import Dataset

from clipseq.data.arrays import check_regular
from clipseq.data.checks import check_clips
from clipseq.data.clip import SPLITS, TEXT, Clip, Maps, frame_count
from clipseq.data.folder_format import read_folder
from clipseq.data.header import Axis, Header
from clipseq.data.single_file_format import read_single_file
from clipseq.engine.options import check_kind, to_path
from clipseq.errors import DataError, suggest


class MapDataset(Dataset[Clip]):
    """Clips that share their views: `MapDataset(path)` reads a folder or an .npz.

    `clipseq.data.folder_format` and `clipseq.data.single_file_format` describe the two formats.
    ``dataset[i]`` is a `Clip` with float32 maps that belong to the caller: changing them in place
    leaves the data set unchanged. All maps are held in memory, in the float type they have on disk
    (float16 costs two bytes per cell of a map). The whole data set is checked when it is opened,
    so that a missing or corrupt file is found at once and not hours into a training run.

    Args:
        path: the folder or the file.

    Attributes:
        modality: name of the signal; "radar" where the data on disk does not name it.
        views: number of bins of each view.
        frame_rate: frames per second, None if unknown.
        axes: the `Axis` of each view for which it is known.
        paired_modality: name of the second signal, None if the clips have only one.
        paired_views: number of bins of each view of the second signal, `{}` without one.
        paired_frame_rate: frames per second of the second signal, None if unknown.
        paired_axes: the `Axis` of each view of the second signal for which it is known.
        class_captions: caption of each class that a clip's `label` may name.

    Raises:
        DataError: something is missing, corrupt or inconsistent; the error names the file and the
            clip.
        TypeError, ValueError: `path` is not a path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = to_path("path", path)
        if path.is_dir():
            self._set(*read_folder(path), where=str(path))
        elif path.is_file():
            self._set(*read_single_file(path), where=str(path))
        else:
            check_regular(path)
            raise DataError(
                f"path must be a data set, a folder with dataset.json or an .npz file, "
                f"got {path}, which does not exist"
            )

    @classmethod
    def from_clips(
        cls,
        clips: Iterable[Clip],
        *,
        modality: str = "radar",
        paired_modality: str | None = None,
        frame_rate: float | None = None,
        paired_frame_rate: float | None = None,
        axes: Mapping[str, Axis] | None = None,
        paired_axes: Mapping[str, Axis] | None = None,
        class_captions: Mapping[str, str] | None = None,
    ) -> "MapDataset":
        """Create a data set from clips in memory, with the checks of one that is read.

        Raises:
            DataError: the clips do not form a valid data set.
            TypeError: `clips` is not an iterable, or axes or captions are not a mapping.
        """
        check_kind("clips", clips, Iterable, "an iterable of clips")
        for name, table in (
            ("axes", axes),
            ("paired_axes", paired_axes),
            ("class_captions", class_captions),
        ):
            check_kind(name, table, (Mapping, type(None)), "a mapping or None")
        dataset = cls.__new__(cls)
        header = Header(
            modality=modality,
            frame_rate=frame_rate,
            paired_modality=paired_modality,
            paired_frame_rate=paired_frame_rate,
            axes=dict(axes or {}),
            paired_axes=dict(paired_axes or {}),
            class_captions=dict(class_captions or {}),
        )
        dataset._set(tuple(clips), header, where="clips")
        return dataset

    def _set(self, clips: tuple[Clip, ...], header: Header, where: str) -> None:
        check_clips(clips, header, where)
        self._clips = clips
        self._header = header
        self.modality = header.modality
        self.views = {view: m.shape[0] for view, m in clips[0].signal.items()}
        self.frame_rate = header.frame_rate
        self.axes = header.axes
        self.paired_modality = header.paired_modality
        self.paired_views = {view: m.shape[0] for view, m in clips[0].paired.items()}
        self.paired_frame_rate = header.paired_frame_rate
        self.paired_axes = header.paired_axes
        self.class_captions = header.class_captions

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Clip:
        try:
            clip = self._clips[operator.index(index)]
        except TypeError:
            raise TypeError(
                f"index must be a whole number, got {index!r}; for several clips use "
                "dataset.subset('train') or [dataset[i] for i in ...]"
            ) from None
        return attrs.evolve(
            clip,
            signal=_copied(clip.signal),
            paired=_copied(clip.paired),
            header=self._header,
        )

    def __repr__(self) -> str:
        signals = f"{self.modality}={self.views}"
        if self.paired_modality is not None:
            signals += f", {self.paired_modality}={self.paired_views}"
        return f"MapDataset({len(self)} clips, {signals}, splits={self.splits})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the signal, the second signal, and "text", as far as the clips have them."""
        names = (self.modality, self.paired_modality, TEXT if self._clips[0].caption else None)
        return tuple(name for name in names if name is not None)

    @property
    def splits(self) -> dict[str, int]:
        """Number of clips of each split that is not empty."""
        count = {split: sum(clip.split == split for clip in self._clips) for split in SPLITS}
        return {split: n for split, n in count.items() if n}

    @property
    def ids(self) -> list[str]:
        """Id of every clip."""
        return [clip.id for clip in self._clips]

    @property
    def captions(self) -> list[str]:
        """Caption of every clip."""
        return [clip.caption for clip in self._clips]

    @property
    def permuted(self) -> list[tuple[str, ...]]:
        """Permuted captions of every clip."""
        return [clip.permuted for clip in self._clips]

    def frame_counts(self, modality: str) -> list[int]:
        """Return the number of frames of every clip in one of its signals.

        Raises:
            DataError: the clips have no such signal.
        """
        if modality == self.modality:
            return [frame_count(clip.signal) for clip in self._clips]
        if modality == self.paired_modality:
            return [frame_count(clip.paired) for clip in self._clips]
        signals = [name for name in self.modalities if name != TEXT]
        raise DataError(
            f"modality must be a signal of this data set, one of {', '.join(signals)}, "
            f"got {modality!r}{suggest(modality, signals)}"
        )

    def subset(self, split: str) -> "MapDataset":
        """Return the clips of one split.

        Raises:
            DataError: the split has no clips.
        """
        if not isinstance(split, str) or split not in self.splits:
            raise DataError(
                f"split must be one of {self.splits}, the splits of this data set, "
                f"got {split!r}{suggest(split, self.splits)}"
            )
        subset = copy.copy(self)
        subset._clips = tuple(clip for clip in self._clips if clip.split == split)
        return subset

    def spread(self, count: int) -> "MapDataset":
        """Return at most `count` clips, evenly spaced from the first on."""
        if len(self) <= count:
            return self
        spread = copy.copy(self)
        spread._clips = tuple(self._clips[k * len(self) // count] for k in range(count))
        return spread


def _copied(maps: Maps) -> Maps:
    # Copied even if it is float32 already: torch warns about read-only arrays.
    return {view: np.array(values, np.float32) for view, values in maps.items()}
