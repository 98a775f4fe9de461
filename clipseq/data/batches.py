"""Batches of clips that differ in length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipseq.data.clip import TEXT, Clip, Maps, frame_count
from clipseq.engine.options import check_kind


def collate(
    clips: Sequence[Clip], *, modality: str = "radar", paired_modality: str | None = None
) -> dict[str, Any]:
    """Return clips as one batch, in the form that `CLIP.training_step` takes.

    With the default names it serves a radar data set as ``DataLoader(collate_fn=collate)``.

    Args:
        clips: at least one clip.
        modality: batch key of the signal, `MapDataset.modality`.
        paired_modality: batch key of the second signal, `MapDataset.paired_modality`.

    Returns:
        ``{modality: {view: float32 (B, F, T)}, modality + "_lengths": int64 (B,), "text": B
        captions, "ids": B ids}``, with the first two keys also for the second signal. T is that of
        the longest clip, and frames after the end of a clip are zero. Without captions, there is no
        key "text".

    Raises:
        TypeError: `clips` is not a list of clips.
        ValueError: there is no clip, or the clips have a second signal but `paired_modality` is
            None (or the reverse).
    """
    check_kind("clips", clips, (list, tuple), "a list of clips")
    for clip in clips:
        check_kind("clips", clip, Clip, "a list of clips")
    check_kind("modality", modality, str, "a string")
    check_kind("paired_modality", paired_modality, (str, type(None)), "a string or None")
    if not clips:
        raise ValueError("clips must hold at least one clip, got none")
    paired = [clip for clip in clips if clip.paired]
    if len(paired) != (0 if paired_modality is None else len(clips)):
        raise ValueError(
            "paired_modality must name the second signal of the clips, and be None without one, "
            f"got {paired_modality!r} for {len(paired)} of {len(clips)} clips with a second "
            "signal; pass paired_modality=dataset.paired_modality"
        )
    batch = _padded(modality, [clip.signal for clip in clips])
    if paired_modality is not None:
        batch |= _padded(paired_modality, [clip.paired for clip in clips])
    captions = [clip.caption for clip in clips]
    if any(captions):
        batch[TEXT] = captions
    return batch | {"ids": [clip.id for clip in clips]}


def _padded(name: str, signals: Sequence[Maps]) -> dict[str, Any]:
    lengths = [frame_count(maps) for maps in signals]
    views: dict[str, Tensor] = {}
    for view, first in signals[0].items():
        values = np.zeros((len(signals), first.shape[0], max(lengths)), np.float32)  # (B, F, T)
        for row, maps in zip(values, signals, strict=True):
            row[:, : maps[view].shape[1]] = maps[view]
        views[view] = torch.from_numpy(values)
    return {name: views, f"{name}_lengths": torch.tensor(lengths, dtype=torch.int64)}
