"""The composition of all augmentations of a clip, and the random numbers that it takes."""

from collections.abc import Collection

import attrs
import numpy as np

from clipseq.augment.bins import mask_bins, shift_bins
from clipseq.augment.config import AugmentConfig
from clipseq.augment.frames import crop_spans, crop_time, mask_time, stretch_spans, stretch_time
from clipseq.augment.maps import check_generator
from clipseq.augment.values import add_noise, add_tilt, blank
from clipseq.data import Clip
from clipseq.data.clip import Maps, frame_count
from clipseq.engine.options import check_kind, whole_number


def clip_generator(seed: int, batch: int, index: int) -> np.random.Generator:
    """Return the random numbers for one clip of one batch.

    They depend on nothing else: a resumed run, and any number of processes and workers, draw the
    same.

    Args:
        seed: random seed of the run.
        batch: number of the batch in the run.
        index: place of the clip in the data set.

    Raises:
        TypeError: an argument is not a whole number.
        ValueError: an argument is negative.
    """
    given = {"seed": seed, "batch": batch, "index": index}
    numbers = [whole_number(name, value, most=2**63 - 1) for name, value in given.items()]
    return np.random.default_rng(numbers)


def augment_clip(
    clip: Clip,
    config: AugmentConfig,
    rng: np.random.Generator,
    *,
    channels: Collection[str] = (),
) -> Clip:
    """Return a clip that could have been recorded instead, with the same caption.

    In this order: a crop of the frames that belong to no action, a stretch, a mask over time, and
    then for each view a shift, a mask over bins, gain and tilt, noise, and perhaps a blank view.
    All views share crop, stretch and mask over time. A second signal, which was recorded at the
    same time, is cropped and stretched like the first. The spans follow. With a strength of 0, the
    clip is unchanged.

    Args:
        clip: the clip; it is not changed.
        config: the strengths.
        rng: random numbers, such as those of `clip_generator`.
        channels: names of the views that are neither shifted nor tilted, if `config` does not name
            them.

    Raises:
        TypeError: `clip`, `config` or `rng` is of another class; `channels` are not names.
    """
    check_kind("clip", clip, Clip, "a Clip")
    check_kind("config", config, AugmentConfig, "an AugmentConfig")
    check_generator(rng)
    check_kind("channels", channels, (list, tuple, set, frozenset), "a list of names of views")
    for name in channels:
        check_kind("channels", name, str, "names of views")
    if not config.strength:
        return clip
    names = frozenset(channels if config.channels is None else config.channels)
    # Everything is drawn whatever the strengths, so that a change of one leaves the others alone.
    low, high = rng.uniform(0, config.strength * config.crop, 2).clip(max=1)
    factor = np.exp(rng.uniform(-1, 1) * np.log1p(config.strength * config.stretch))
    clip = _stretched(_cropped(clip, low, high), factor)
    shortest = min((stop - start for start, stop in clip.spans), default=clip.frames)
    hidden = min(config.strength * config.mask_time, shortest / clip.frames / 2)
    return attrs.evolve(
        clip,
        signal=_changed(clip.signal, config, rng, hidden, names),
        paired=_changed(clip.paired, config, rng, hidden, names) if clip.paired else {},
    )


def _cropped(clip: Clip, low: float, high: float) -> Clip:
    """Cut shares of the frames before the first and after the last action."""
    if not clip.spans:
        return clip
    first = min(start for start, _ in clip.spans)
    last = max(stop for _, stop in clip.spans)
    total = clip.frames
    start, stop = int(low * first), total - int(high * (total - last))

    def cut(maps: Maps) -> Maps:
        frames = frame_count(maps)
        begin = start * frames // total
        end = max(begin + 1, -(-stop * frames // total))
        return {view: crop_time(values, begin, end) for view, values in maps.items()}

    return attrs.evolve(
        clip,
        signal=cut(clip.signal),
        paired=cut(clip.paired) if clip.paired else {},
        spans=crop_spans(clip.spans, start, stop),
    )


def _stretched(clip: Clip, factor: float) -> Clip:
    frames = max(1, round(clip.frames * factor))

    def stretch(maps: Maps) -> Maps:
        length = max(1, round(frame_count(maps) * factor))
        return {view: stretch_time(values, length) for view, values in maps.items()}

    return attrs.evolve(
        clip,
        signal=stretch(clip.signal),
        paired=stretch(clip.paired) if clip.paired else {},
        spans=stretch_spans(clip.spans, clip.frames, frames),
    )


def _changed(
    maps: Maps,
    config: AugmentConfig,
    rng: np.random.Generator,
    hidden_time: float,
    channels: Collection[str],
) -> Maps:
    """Mask and change the values of one signal, at most a share `hidden_time` of its frames."""
    by = config.strength
    frames = frame_count(maps)
    masked = _up_to(rng, hidden_time * frames)
    start = int(rng.integers(frames - masked + 1))
    dropped = int(rng.integers(len(maps)))
    drop = rng.uniform() < by * config.drop_view and len(maps) > 1
    changed: Maps = {}
    for number, (view, values) in enumerate(maps.items()):
        bins = len(values)
        shift = round(rng.uniform(-1, 1) * min(1.0, by * config.shift) * bins)
        hidden = _up_to(rng, min(1.0, by * config.mask_bins) * bins)
        first = int(rng.integers(bins - hidden + 1))
        gain, tilt = by * rng.uniform(-1, 1, 2) * (config.gain, config.tilt)
        noise = by * rng.uniform() * config.noise
        if view in channels:
            shift, tilt = 0, 0.0
        values = mask_time(values, start, start + masked)
        values = mask_bins(shift_bins(values, shift), first, first + hidden)
        values = add_noise(add_tilt(values, float(gain), float(tilt)), noise, rng)
        changed[view] = blank(values) if drop and number == dropped else values
    return changed


def _up_to(rng: np.random.Generator, most: float) -> int:
    """Draw a whole number from 0 to `most`, all equally likely."""
    return int(rng.uniform() * (int(most) + 1))
