"""The strengths of the augmentations, the table [training.augment] of a run."""

from typing import Any

import attrs

from clipseq.config import strict
from clipseq.errors import ConfigError


def _share(instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{attribute.name} must be in [0, 1], got {value!r}")


def _amount(instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{attribute.name} must be at least 0 and finite, got {value!r}")


@attrs.frozen(field_transformer=strict)
class AugmentConfig:
    """The strengths of all augmentations of a clip; each is off at 0.

    Attributes:
        strength: factor on all other strengths; 0 turns augmentation off.
        stretch: the number of frames is multiplied by a factor between 1 / (1 + stretch) and
            1 + stretch.
        crop: largest share of the frames before the first and after the last action that is cut
            off. A clip without spans is not cropped, since any frame may show an action.
        mask_time: largest share of the frames that is masked in one place; never more than half of
            the shortest action.
        mask_bins: largest share of the bins of a view that is masked in one place.
        shift: largest shift along the bins of a view, as a share of its bins.
        gain: largest change of all values of a view, in standard deviations of the map.
        tilt: largest change at the first and the last bin of a view, in opposite directions, in
            standard deviations of the map.
        noise: largest standard deviation of the noise, in standard deviations of the map.
        drop_view: probability that one view of a signal of several views is blanked.
        channels: names of the views whose rows are channels (joints, electrodes) and not ordered
            bins; they are neither shifted nor tilted. None: those whose neighbouring rows do not
            resemble each other; see `views_of_channels`.
    """

    strength: float = attrs.field(default=1.0, validator=_amount)
    stretch: float = attrs.field(default=0.15, validator=_amount)
    crop: float = attrs.field(default=1.0, validator=_share)
    mask_time: float = attrs.field(default=0.05, validator=_share)
    mask_bins: float = attrs.field(default=0.1, validator=_share)
    shift: float = attrs.field(default=0.0, validator=_share)
    gain: float = attrs.field(default=0.0, validator=_amount)
    tilt: float = attrs.field(default=0.0, validator=_amount)
    noise: float = attrs.field(default=0.2, validator=_amount)
    drop_view: float = attrs.field(default=0.05, validator=_share)
    channels: tuple[str, ...] | None = None
