"""From [model] and [tokenizer] of a run's configuration to a CLIP."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import attrs
import torch

from clipseq.config import structure
from clipseq.data import MapDataset
from clipseq.encoders import SignalConfig, TextConfig
from clipseq.encoders.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    TrainedTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from clipseq.errors import ConfigError, UnknownSimilarityError, nearest
from clipseq.model.clip import CLIP, lists_to_tuples
from clipseq.model.pretrained import resolved_options
from clipseq.registry import available_similarities, get_similarity
from clipseq.training.config import RunConfig
from clipseq.training.folder import RunFolder


def check_model_config(table: Mapping[str, Any]) -> None:
    """Raise ConfigError for an unknown or ill-typed key of [model], before any work is done."""
    structure(_model_class(), table, where="model")
    structure(SignalConfig, table.get("encoder_cfg", {}), where="model.encoder_cfg")
    structure(TextConfig, table.get("text_cfg", {}), where="model.text_cfg")


def pinned(config: RunConfig) -> RunConfig:
    """`config` with all options of its similarity, defaults and the parts of `combined` too.

    What is installed or removed later then does not change what a resumed run builds.

    Raises:
        ConfigError: a similarity or an option that does not exist, or does not fit.
    """
    clip = structure(_model_class(), config.model, where="model")
    name, given = clip.sequence_similarity_type, clip.sequence_similarity_options or {}
    if not clip.use_sequence_similarity:
        return config
    key = "type" if name not in available_similarities([name]) else "options"
    try:
        with torch.random.fork_rng(devices=[]):
            similarity = get_similarity(name, **lists_to_tuples(given))
    except (UnknownSimilarityError, TypeError, ValueError) as error:
        cause = "; ".join([str(error), *getattr(error, "__notes__", ())])
        raise ConfigError(f"model.sequence_similarity_{key}: {cause}") from error
    options = _tuples_to_lists(resolved_options(name, given, similarity, {}))
    return attrs.evolve(config, model=config.model | {"sequence_similarity_options": options})


def check_model(table: Mapping[str, Any], views: Mapping[str, int]) -> None:
    """Raise what `build_model` would, whatever the captions: for before there are any.

    Raises:
        ConfigError, ValueError, TypeError: see `build_model`.
    """
    # How many ids there are, the captions say.
    text = {key: value for key, value in table.get("text_cfg", {}).items() if key != "vocab_size"}
    build_model({**table, "text_cfg": text}, views, None)


def check_captions(model: CLIP, dataset: MapDataset, *, evaluated: bool) -> None:
    """Raise ConfigError for a caption that the text tower cannot read, a too long one say.

    Of the splits that are trained and validated on; and, where it is to be `evaluated`, of all that
    `evaluate` will give it: what is trained on one split can then be evaluated on any.
    """
    if not evaluated:
        for split in ("train", "val"):
            if split in dataset.splits:
                _check_captions(model, dataset.subset(split).captions, f"the split {split!r}")
        return
    for split in dataset.splits:
        clips = dataset.subset(split)
        _check_captions(model, clips.captions, f"the split {split!r}")
        # A data set may say anything here, and the same words in another order may be more tokens.
        for number, permuted in enumerate(clips.permuted):
            if permuted:
                where = f"the split {split!r}, permuted captions of its clip {number}"
                _check_captions(model, permuted, where)
    if "zeroshot" in dataset.splits:
        for name, caption in dataset.class_captions.items():
            _check_captions(model, [caption], f"the class caption of {name!r}")


def _check_captions(model: CLIP, captions: Sequence[str], where: str) -> None:
    tower: Any = model.y_encoder
    try:
        tower.read(captions)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


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
    """The run's tokenizer: trained on `captions`, or read from the run folder.

    A resumed run reads it: the weights in the checkpoint belong to its ids and no others.
    """
    kind = config.tokenizer.kind
    if config.model.get("text_cfg", {}).get("pretrained"):
        return None
    if kind == "byte":
        return ByteTokenizer()
    if resume and folder.tokenizer.exists():
        return load_tokenizer(TrainedTokenizer.kind, folder.tokenizer)
    return train_tokenizer(captions, config.tokenizer.vocab_size, kind=kind)


def keep_tokenizer(tokenizer: Tokenizer | None, folder: RunFolder) -> None:
    """Write a trained tokenizer into the run folder, unless it is there already."""
    if isinstance(tokenizer, TrainedTokenizer) and not folder.tokenizer.exists():
        folder.tokenizer.mkdir(parents=True)
        tokenizer.save(folder.tokenizer)


def _tuples_to_lists(value: Any) -> Any:
    # As they are read back from TOML.
    if isinstance(value, Mapping):
        return {key: _tuples_to_lists(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_tuples_to_lists(inner) for inner in value]
    return value


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
