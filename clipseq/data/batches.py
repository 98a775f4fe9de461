"""Clips of different lengths as one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clipseq.data.clip import Clip


def collate(clips: Sequence[Clip]) -> dict[str, Any]:
    """The batch that `CLIP.training_step` takes, for `DataLoader(collate_fn=collate)`.

    Returns {"radar": {view: float32 (B, F, T)}, "radar_lengths": int64 (B,), "text": B captions,
    "ids": B ids}; T is the longest clip's, and frames past a clip's end are zero.
    """
    if not clips:
        raise ValueError("collate wants at least one clip, got none")
    lengths = [clip.frames for clip in clips]
    radar = {}
    for view, first in clips[0].radar.items():
        batch = np.zeros((len(clips), first.shape[0], max(lengths)), np.float32)
        for row, clip in zip(batch, clips, strict=True):
            row[:, : clip.frames] = clip.radar[view]
        radar[view] = torch.from_numpy(batch)
    return {
        "radar": radar,
        "radar_lengths": torch.tensor(lengths, dtype=torch.int64),
        "text": [clip.caption for clip in clips],
        "ids": [clip.id for clip in clips],
    }
