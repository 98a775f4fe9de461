"""Augmentations: small pure functions on maps (F, T), and their composition for whole clips."""

from clipseq.augment.bins import mask_bins, shift_bins, views_of_channels
from clipseq.augment.clips import augment_clip, clip_generator
from clipseq.augment.config import AugmentConfig
from clipseq.augment.frames import crop_spans, crop_time, mask_time, stretch_spans, stretch_time
from clipseq.augment.values import add_noise, add_tilt, blank

__all__ = [
    "AugmentConfig",
    "add_noise",
    "add_tilt",
    "augment_clip",
    "blank",
    "clip_generator",
    "crop_spans",
    "crop_time",
    "mask_bins",
    "mask_time",
    "shift_bins",
    "stretch_spans",
    "stretch_time",
    "views_of_channels",
]
