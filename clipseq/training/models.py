"""Building a CLIP from [model] and [tokenizer] of a run's configuration."""

import warnings
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import attrs
import torch

from clipseq.data import MapDataset
from clipseq.encoders import SignalConfig
from clipseq.encoders.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    TrainedTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from clipseq.engine.files import replacing
from clipseq.errors import ConfigError, UnknownLossError, UnknownSimilarityError, suggest
from clipseq.model import CLIP, ModelConfig
from clipseq.model.config import SIDES
from clipseq.model.construction import check_towers, make_pair_loss
from clipseq.model.saving import resolve_options
from clipseq.registry import available_losses, available_similarities, get_similarity
from clipseq.training.config import RunConfig
from clipseq.training.folder import RunFolder


def check_model_config(table: Mapping[str, Any]) -> ModelConfig:
    """Return [model] as a `ModelConfig`, to find its errors before any work is done.

    Raises:
        ConfigError: a key that is unknown, ill-typed or out of its range.
    """
    return ModelConfig.from_table(table, where="model")


def pin_options(config: RunConfig) -> RunConfig:
    """Return `config` with all options of its similarity, defaults and parts included.

    Plugins that are installed or removed later then do not change a resumed run.

    Raises:
        ConfigError: a similarity, a loss or one of their options does not exist or does not fit.
    """
    model = check_model_config(config.model)
    try:
        with torch.random.fork_rng(devices=[]):
            make_pair_loss(model)
    except (UnknownLossError, TypeError, ValueError) as error:
        key = "loss" if model.loss not in available_losses([model.loss]) else "loss_options"
        raise ConfigError(f"model.{key}: {_cause(error)}") from error
    if not model.use_sequence_similarity:
        return config
    name, given = model.sequence_similarity_type, model.sequence_similarity_options or {}
    key = "type" if name not in available_similarities([name]) else "options"
    try:
        with torch.random.fork_rng(devices=[]):
            similarity = get_similarity(name, **given)
    except (UnknownSimilarityError, TypeError, ValueError) as error:
        raise ConfigError(f"model.sequence_similarity_{key}: {_cause(error)}") from error
    options = _tuples_to_lists(resolve_options(name, given, similarity, {}))
    return attrs.evolve(config, model=config.model | {"sequence_similarity_options": options})


def _cause(error: Exception) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def check_model(table: Mapping[str, Any], views: Mapping[str, int]) -> None:
    """Raise the errors of `build_model` that depend on neither captions nor pretrained weights.

    No model is built: one as large as memory is built only once in a run.

    Raises:
        ConfigError, ValueError, ImportError: see `build_model`.
    """
    check_towers(ModelConfig(**_with_signals(table, {"radar": views}, ("radar", None))))


def fit_config(table: Mapping[str, Any], dataset: MapDataset) -> ModelConfig:
    """Return [model] with the names and the views of the data filled in.

    Raises:
        ConfigError: see `build_model`.
    """
    signals = {dataset.modality: dataset.views}
    if dataset.paired_modality is not None:
        signals[dataset.paired_modality] = dataset.paired_views
    names = (dataset.modality, dataset.paired_modality)
    return ModelConfig(**_with_signals(table, signals, names))


STEPS_PER_CLIP = 32
"""Number of patches of a clip of median length, about, unless the configuration says otherwise.

With fewer, the order of short events is lost inside a patch.
"""


def choose_patches(config: RunConfig, clips: MapDataset) -> RunConfig:
    """Return `config` with the frames of a patch in every signal tower that does not set them.

    A clip of median length gets about `STEPS_PER_CLIP` patches, and a patch at most as many frames
    as `SignalConfig` has by default.

    Args:
        config: the configuration of a run.
        clips: the training clips.
    """
    model, fitted = dict(config.model), fit_config(config.model, clips)
    for side in SIDES:
        tower, table = getattr(fitted, side.argument), model.get(side.argument) or {}
        if isinstance(tower, SignalConfig) and "patch_frames" not in table:
            frames = round(median(clips.frame_counts(tower.name)) / STEPS_PER_CLIP)
            frames = min(max(frames, 1), SignalConfig().patch_frames)
            model[side.argument] = {**table, "patch_frames": frames}
    return attrs.evolve(config, model=model)


def keep_patches(config: RunConfig, written: RunConfig) -> RunConfig:
    """Return `config` with the frames of a patch that a run was started with, unless it sets them.

    Args:
        config: the configuration that a run is resumed with.
        written: the configuration in its folder, which names what was chosen at its start.
    """
    model = dict(config.model)
    for side in SIDES:
        table, before = (m.get(side.argument) or {} for m in (model, written.model))
        if "patch_frames" in before and "patch_frames" not in table:
            model[side.argument] = {**table, "patch_frames": before["patch_frames"]}
    return attrs.evolve(config, model=model)


def check_captions(model: CLIP, dataset: MapDataset, *, evaluated: bool) -> None:
    """Raise ConfigError for a caption that the text tower cannot read, such as one too long.

    The captions of the training and validation splits are checked. If the run will be `evaluated`,
    every caption that `evaluate` reads is checked too, so that any split can be evaluated.
    """
    if not evaluated:
        for split in ("train", "val"):
            if split in dataset.splits:
                _check_captions(model, dataset.subset(split).captions, f"the split {split!r}")
        return
    for split in dataset.splits:
        clips = dataset.subset(split)
        _check_captions(model, clips.captions, f"the split {split!r}")
        # Permuted captions may be any text, and other orders of words may have more tokens.
        for number, permuted in enumerate(clips.permuted):
            if permuted:
                where = f"the split {split!r}, permuted captions of its clip {number}"
                _check_captions(model, permuted, where)
    if "zeroshot" in dataset.splits:
        for name, caption in dataset.class_captions.items():
            _check_captions(model, [caption], f"the class caption of {name!r}")


def _check_captions(model: CLIP, captions: Sequence[str], where: str) -> None:
    if model.text_tower is None:
        return
    before = model.text_tower.truncated
    try:
        model.text_tower.read(captions)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if cut := model.text_tower.truncated - before:
        warnings.warn(
            f"{where}: {cut} of {len(captions)} captions are longer than the context and are cut "
            "(truncate = true)",
            stacklevel=2,
        )


def build_model(
    table: Mapping[str, Any],
    views: Mapping[str, int],
    tokenizer: Tokenizer | None,
    *,
    modality: str = "radar",
    paired_modality: str | None = None,
    paired_views: Mapping[str, int] | None = None,
) -> CLIP:
    """Build a CLIP with new weights.

    Args:
        table: keyword arguments of CLIP. A signal tower without a name gets that of a signal of the
            data: encoder_cfg that of the first, text_cfg (with ``tower = "signal"``) that of the
            second. It takes all views of its signal, unless it has `views`.
        views: the number of bins of each view of the data's signal.
        tokenizer: None if no tower takes one.
        modality: name of the data's signal.
        paired_modality: name of the data's second signal; None without one.
        paired_views: the number of bins of each view of the second signal.

    Raises:
        ConfigError: the data lacks a signal or a view, or has it with another number of bins.
    """
    signals = {modality: views}
    if paired_modality is not None:
        signals[paired_modality] = paired_views or {}
    options = _with_signals(table, signals, (modality, paired_modality))
    return CLIP(**options, tokenizer=tokenizer)


def _with_signals(
    table: Mapping[str, Any],
    signals: Mapping[str, Mapping[str, int]],
    names: tuple[str, str | None],
) -> dict[str, Any]:
    """Return `table` with the names and the views of the data in its signal towers."""
    options = dict(table)
    for side, name in zip(SIDES, names, strict=True):
        tower = table.get(side.argument) or {}
        if tower.get("tower", side.kind) == "signal":
            options[side.argument] = _signal(dict(tower), name, signals, f"model.{side.argument}")
    return options


def _signal(
    tower: dict[str, Any],
    default: str | None,
    signals: Mapping[str, Mapping[str, int]],
    where: str,
) -> dict[str, Any]:
    """Return a signal tower's table with the name and the views of the data filled in."""
    name = tower.setdefault("name", default)
    if not isinstance(name, str) or name not in signals:
        raise ConfigError(
            f"{where}.name must be a signal of the data, which has {', '.join(signals)}, "
            f"got {name!r}"
        )
    tower["tower"], views = "signal", signals[name]
    for view, bins in tower.setdefault("views", dict(views)).items():
        if view not in views:
            raise ConfigError(
                f"{where}.views must be views of the data, which has {', '.join(views)}, "
                f"got {view!r}{suggest(view, views)}"
            )
        if bins != views[view]:
            raise ConfigError(
                f"{where}.views must give {view!r} the {views[view]} bins that it has in the "
                f"data, got {bins}"
            )
    return tower


def get_tokenizer(
    config: RunConfig, captions: Sequence[str], folder: RunFolder, *, resume: bool
) -> Tokenizer | None:
    """Return the run's tokenizer: trained on `captions`, or read from the run folder.

    A resumed run reads it, since the weights in the checkpoint belong to its ids.
    """
    kind = config.tokenizer.kind
    if not check_model_config(config.model).takes_tokenizer:
        return None
    if kind == "byte":
        return ByteTokenizer()
    if resume and folder.tokenizer.exists():
        return load_tokenizer(TrainedTokenizer.kind, folder.tokenizer)
    return train_tokenizer(captions, config.tokenizer.vocab_size, kind=kind)


def keep_tokenizer(tokenizer: Tokenizer | None, folder: RunFolder) -> None:
    """Write a trained tokenizer into the run folder, unless it is already there."""
    if isinstance(tokenizer, TrainedTokenizer) and not folder.tokenizer.exists():
        with replacing(folder.tokenizer) as partial:
            partial.mkdir(exist_ok=True)
            tokenizer.save(partial)


def _tuples_to_lists(value: Any) -> Any:
    """Return `value` with tuples replaced by lists, as it would be read back from TOML."""
    if isinstance(value, Mapping):
        return {key: _tuples_to_lists(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_tuples_to_lists(inner) for inner in value]
    return value
