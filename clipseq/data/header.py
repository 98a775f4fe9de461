"""Header: the names and rates that all clips of a data set share."""

import attrs


@attrs.frozen(kw_only=True)
class Header:
    """Names and rates that hold for every clip of a data set.

    Attributes:
        modality: name of the signal. A data set that does not name it holds radar.
        frame_rate: frames per second of the signal, None if unknown.
        paired_modality: name of the second signal, None if the clips have only one.
        paired_frame_rate: frames per second of the second signal, None if unknown.
        class_captions: caption of each class that a clip's `label` may name.
    """

    modality: str = "radar"
    frame_rate: float | None = None
    paired_modality: str | None = None
    paired_frame_rate: float | None = None
    class_captions: dict[str, str] = attrs.field(factory=dict)
