"""Header: the names, rates and axes that all clips of a data set share."""

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class Axis:
    """The meaning of a view's bins and values, with units; figures show it.

    Attributes:
        label: the quantity along the bins, such as "range".
        unit: its unit, such as "m"; "" without one.
        first: the quantity at the centre of the first bin.
        last: the quantity at the centre of the last bin.
        values: the quantity in the map, with its unit, such as "power (dB)"; "" if unknown.
        scale: a value v of the map stands for ``offset + scale·v`` of that quantity.
        offset: see `scale`.
    """

    label: str
    unit: str = ""
    first: float
    last: float
    values: str = ""
    scale: float = 1.0
    offset: float = 0.0


@attrs.frozen(kw_only=True)
class Header:
    """Names, rates and axes that hold for every clip of a data set.

    Attributes:
        modality: name of the signal. A data set that does not name it holds radar.
        frame_rate: frames per second of the signal, None if unknown.
        axes: axis of each view of the signal for which it is known.
        paired_modality: name of the second signal, None if the clips have only one.
        paired_frame_rate: frames per second of the second signal, None if unknown.
        paired_axes: axis of each view of the second signal for which it is known.
        class_captions: caption of each class that a clip's `label` may name.
    """

    modality: str = "radar"
    frame_rate: float | None = None
    axes: Mapping[str, Axis] = attrs.field(factory=dict)
    paired_modality: str | None = None
    paired_frame_rate: float | None = None
    paired_axes: Mapping[str, Axis] = attrs.field(factory=dict)
    class_captions: dict[str, str] = attrs.field(factory=dict)
