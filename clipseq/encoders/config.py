"""The configs of the towers. Width and depth are options of the model: both towers share them."""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs
from attrs import field, frozen

from clipseq.config import strict, structure, to_plain, unstructure
from clipseq.errors import ConfigError, suggest

Fusion = Literal["concat", "add", "attention"]


def _whole_number(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ConfigError(f"{attribute.name} must be a whole number of at least 1, got {value!r}")


def _fraction(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ConfigError(f"{attribute.name} must be a number in [0, 1), got {value!r}")


def _share(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ConfigError(f"{attribute.name} must be a number in [0, 1], got {value!r}")


def _flag(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if type(value) is not bool:
        raise ConfigError(f"{attribute.name} must be True or False, got {value!r}")


def _fusion(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    choices = get_args(Fusion)
    if not isinstance(value, str) or value not in choices:
        hint = suggest(value, choices)
        raise ConfigError(f"fusion must be one of {', '.join(choices)}, got {value!r}{hint}")


def _views(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"views must map each view's name to its number of bins, got {value!r}")
    for name, bins in value.items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a view's name must be a non-empty string, got {name!r}")
        if type(bins) is not int or bins < 1:
            raise ConfigError(
                f"the number of bins of {name!r} in views must be a whole number of at least 1, "
                f"got {bins!r}"
            )


def check_name(name: object, *, where: str = "name") -> None:
    """Raise ConfigError unless `name` may name a side of a model."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"{where} must be lower-case letters, digits and underscores that start with a letter, "
            f"got {name!r}"
        )


def _name(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    check_name(value)


def _own_dict(value: Any) -> Any:
    # Copy: a frozen config must not change when the caller changes the dictionary.
    return to_plain(value) if isinstance(value, Mapping) else value


def _default_views() -> dict[str, int]:
    return {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}


@frozen
class SignalConfig:
    """A tower over one or more time-frequency maps.

    Attributes:
        name: the signal's name, such as "audio". It is a key of batches (as are ``<name>_lengths``
            and ``<name>_mask``) and appears in metrics and error texts.
        views: name of each map -> F, its number of bins (of frequency, range or angle) or channels.
        patch_frames: frames per token (a patch); the last patch of a clip may be partly empty.
            `clipseq.training.train` chooses fewer for short clips, unless a run sets them.
        fusion: how the views of a patch become one token. "concat": a linear layer on the views
            side by side; an absent view is zero. "add": the mean of the views present.
            "attention": that mean plus the output of a learned query that attends to the views
            present.
        mean_subtraction: share of each bin's mean over the clip that is subtracted from the bin.
            The mean shows who or what was recorded, and with what, more than what happens. 1: all
            of it (cepstral mean normalisation, for a signal whose speaker, sensor or place
            changes); 0: none of it.
        dropout: dropout probability in the transformer, in training only.
        gradient_checkpointing: recompute each block in backward: less memory, a third more time.
    """

    name: str = field(default="radar", validator=_name)
    views: dict[str, int] = field(factory=_default_views, converter=_own_dict, validator=_views)
    patch_frames: int = field(default=16, converter=to_plain, validator=_whole_number)
    fusion: Fusion = field(default="concat", validator=_fusion)
    mean_subtraction: float = field(default=0.5, converter=to_plain, validator=_share)
    dropout: float = field(default=0.0, converter=to_plain, validator=_fraction)
    gradient_checkpointing: bool = field(default=False, converter=to_plain, validator=_flag)


def _positive(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ConfigError(f"{attribute.name} must be a finite number above 0, got {value!r}")


@frozen(field_transformer=strict)
class Lora:
    """Low-rank adapters, which are trained instead of the weights of a pretrained tower.

    Each adapted layer computes ``W x + (alpha / rank)·B A x``, with W frozen, A (rank, in) and
    B (out, rank) (arXiv:2106.09685). `save_pretrained` adds the product to W, so a saved model
    needs neither peft nor this table.

    Attributes:
        rank: rank of the adapters.
        alpha: scale of the adapters, times `rank`.
        dropout: dropout probability on the input of the adapters, in training only.
        targets: ends of the names of the layers to adapt, such as "query"; empty: all linear
            layers.
    """

    rank: int = field(default=8, converter=to_plain, validator=_whole_number)
    alpha: float = field(default=16.0, converter=to_plain, validator=_positive)
    dropout: float = field(default=0.0, converter=to_plain, validator=_fraction)
    targets: tuple[str, ...] = ()


@frozen(field_transformer=strict)
class TextConfig:
    """A tower over captions.

    Attributes:
        name: the text's name, such as "caption"; see `SignalConfig`.
        pretrained: a Hugging Face model to use as the tower: a local directory, or "owner/name" of
            a model on the hub, which is downloaded once; None: clipseq's own transformer, trained
            from scratch.
        revision: branch, tag or commit of `pretrained` on the hub; None: its main branch.
        freeze: keep the pretrained model's weights (and its dropout off), and train only the
            projection to the model's width. Needs `pretrained`.
        lora: train low-rank adapters of the pretrained model and keep its weights; None: train the
            weights themselves. Needs `pretrained` and the extra `lora`.
        causal: True: a word attends only to earlier words, as in CLIP; False: to all. Ignored by a
            pretrained model.
        truncate: True: a caption with more tokens than the context is cut to its first ones, and
            counted; False: it is an error.
        vocab_size: size of the vocabulary, if token ids come from a tokenizer that the model does
            not hold. None: that of the model's tokenizer.
        dropout: dropout probability in the transformer, in training only. Ignored by a pretrained
            model, which has its own.
        gradient_checkpointing: recompute each block in backward: less memory, a third more time.
    """

    name: str = field(default="text", validator=_name)
    pretrained: str | None = field(
        default=None, converter=lambda path: None if path is None else str(path)
    )
    revision: str | None = None
    freeze: bool = field(default=False, converter=to_plain, validator=_flag)
    lora: Lora | None = None
    causal: bool = field(default=True, converter=to_plain, validator=_flag)
    truncate: bool = field(default=False, converter=to_plain, validator=_flag)
    vocab_size: int | None = field(
        default=None, converter=to_plain, validator=attrs.validators.optional(_whole_number)
    )
    dropout: float = field(default=0.0, converter=to_plain, validator=_fraction)
    gradient_checkpointing: bool = field(default=False, converter=to_plain, validator=_flag)

    def __attrs_post_init__(self) -> None:
        if self.revision is not None and self.pretrained is None:
            raise ConfigError(
                f"revision must be None without pretrained, got {self.revision!r}; leave it out"
            )
        if self.lora is not None and (self.pretrained is None or self.freeze):
            cause = "without pretrained" if self.pretrained is None else "with freeze"
            raise ConfigError(
                f"lora must be None {cause}, got {self.lora}; adapters are trained on the frozen "
                "weights of a pretrained model"
            )
        if self.freeze and self.pretrained is None:
            raise ConfigError(
                "freeze must be False without pretrained, got True; name a model directory in "
                "pretrained, since random weights must be trained"
            )


TowerConfig = SignalConfig | TextConfig
KINDS: Mapping[str, type[SignalConfig] | type[TextConfig]] = {
    "signal": SignalConfig,
    "text": TextConfig,
}
"""The config class of each kind of tower, by its value of the key `tower` in a table."""


def tower_config(given: object, *, kind: str, where: str) -> TowerConfig:
    """Return the config that a table describes, or `given` itself if it is a config.

    Args:
        given: a config, a table of its fields, or None for the defaults.
        kind: the kind of tower, "signal" or "text", if the table has no key `tower`.
        where: the dotted path of the table, for error texts.

    Raises:
        ConfigError: an unknown kind; an unknown or ill-typed key; a value out of its range.
    """
    if isinstance(given, TowerConfig):
        return given
    table = {} if given is None else given
    if isinstance(table, Mapping) and "tower" in table:
        kind = table["tower"]
        if kind not in KINDS:
            hint = suggest(kind, KINDS) if isinstance(kind, str) else ""
            raise ConfigError(f"{where}.tower must be 'signal' or 'text', got {kind!r}{hint}")
        table = {key: value for key, value in table.items() if key != "tower"}
    return structure(KINDS[kind], table, where=where)


def tower_table(config: TowerConfig) -> dict[str, Any]:
    """Return the table that `tower_config` turns back into `config`."""
    kind = next(kind for kind, cls in KINDS.items() if isinstance(config, cls))
    return {"tower": kind, **unstructure(config)}
