"""From [model] and [tokenizer] of a run's configuration to a CLIP."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import attrs

from clipseq.config import structure
from clipseq.encoders import RadarConfig, TextConfig
from clipseq.encoders.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    TrainedTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from clipseq.errors import ConfigError, nearest
from clipseq.model import CLIP
from clipseq.training.config import RunConfig
from clipseq.training.folder import RunFolder


def check_model_config(table: Mapping[str, Any]) -> None:
    """Raise ConfigError for an unknown or ill-typed key of [model], before any work is done."""
    structure(_model_class(), table, where="model")
    structure(RadarConfig, table.get("encoder_cfg", {}), where="model.encoder_cfg")
    structure(TextConfig, table.get("text_cfg", {}), where="model.text_cfg")


def build_model(
    table: Mapping[str, Any], views: Mapping[str, int], tokenizer: Tokenizer | None
) -> CLIP:
    """A CLIP with new weights.

    Args:
        table: keyword arguments of CLIP.
        views: the views of the data and their bins; the model takes all of them unless
            ``table["encoder_cfg"]["views"]`` names some.
        tokenizer: None for a text tower that brings its own.

    Raises:
        ConfigError: a view that the data does not have, or not with that many bins.
    """
    encoder = dict(table.get("encoder_cfg", {}))
    wanted = encoder.setdefault("views", dict(views))
    for name, bins in wanted.items():
        if name not in views:
            raise ConfigError(
                f"model.encoder_cfg.views names {name!r}, which the data does not have"
                f"{nearest(name, views)} (it has {', '.join(views)})"
            )
        if bins != views[name]:
            raise ConfigError(
                f"model.encoder_cfg.views: {name!r} has {views[name]} bins in the data, not {bins}"
            )
    return CLIP(**{**table, "encoder_cfg": encoder, "tokenizer": tokenizer})


def run_tokenizer(
    config: RunConfig, captions: Sequence[str], folder: RunFolder, *, resume: bool
) -> Tokenizer | None:
    """The run's tokenizer: trained on `captions` and kept in the run folder, or read from there.

    A resumed run reads it: the weights in the checkpoint belong to its ids and no others.
    """
    kind = config.tokenizer.kind
    if config.model.get("text_cfg", {}).get("pretrained"):
        return None
    if kind == "byte":
        return ByteTokenizer()
    if resume and folder.tokenizer.exists():
        return load_tokenizer(TrainedTokenizer.kind, folder.tokenizer)
    tokenizer = train_tokenizer(captions, config.tokenizer.vocab_size, kind=kind)
    folder.tokenizer.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder.tokenizer)
    return tokenizer


@cache
def _model_class() -> Any:
    """CLIP's keyword arguments as an attrs class, so that a config has CLIP's names and types."""
    fields = {}
    for name, parameter in list(inspect.signature(CLIP.__init__).parameters.items())[1:]:
        if name == "tokenizer":
            continue
        kind = parameter.annotation
        if name in ("encoder_cfg", "text_cfg", "sequence_similarity_options"):
            kind = dict[str, Any]  # what a file can hold of them
        fields[name] = attrs.field(default=parameter.default, type=kind)
    return attrs.make_class("ModelConfig", fields, frozen=True)
