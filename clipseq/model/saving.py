"""Saving a model into a folder, and uploading it; see `clipseq.model.saved` for the files."""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors.torch import save_file
from torch import Tensor

from clipseq import __version__
from clipseq.config import to_plain, unstructure
from clipseq.distributed.sharding import gather_state, run_in_first_process, unsharded_class
from clipseq.encoders import HuggingFaceTextTower, ModuleTower, SignalTower, TextTower
from clipseq.model.config import SIDES, ModelConfig
from clipseq.model.saved import (
    CONFIG,
    FILES,
    WEIGHTS,
    Origin,
    SavedModel,
    TwoTowers,
    language_model_keys,
    own_weights,
)
from clipseq.registry import available_losses, available_similarities
from clipseq.similarity import Similarity

PREVIOUS = "previous"
"""The folder, inside the temporary folder of a save, for the files that the save replaces."""


class SavesPretrained(TwoTowers):
    """A model that can be saved."""

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model into `directory`, which is created if necessary.

        Everything is written to a folder inside `directory` first and then moved into place, so
        an interrupted save leaves the previous files. Other files in `directory` are left alone.

        All options of similarity and loss are recorded: "combined" with the parts that it has now,
        so that a plugin that is installed later does not change the model.

        A model that FSDP2 has sharded is saved whole. Every process must call this method, because
        weights are gathered from all of them; the first process writes, and all return when it is
        done.

        Raises:
            ValueError: a value that JSON cannot hold, most likely an option of the similarity.
            OSError: the directory cannot be written.
            ClipseqError: in the other processes, if the first could not write.
        """
        state, sharded = gather_state(self)
        if sharded:
            run_in_first_process(lambda: _save(self, state, Path(directory)))
        else:
            _save(self, state, Path(directory))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, with a model card, to the Hugging Face hub.

        Args:
            repo_id: "owner/name"; created if necessary.
            options: those of huggingface_hub's ``ModelHubMixin.push_to_hub``: commit_message,
                private, token, branch, create_pr, ...

        Returns:
            The address of the commit.

        Raises:
            ImportError: huggingface_hub is not installed.
        """
        if importlib.util.find_spec("huggingface_hub") is None:
            raise ImportError("push_to_hub needs huggingface_hub: pip install 'clipseq[hf]'")
        from huggingface_hub import ModelHubMixin

        model = self

        # Defined here and not inherited, so that importing clipseq does not import the mixin.
        class Upload(ModelHubMixin, library_name="clipseq", tags=["clipseq"]):
            def _save_pretrained(self, save_directory: Path) -> None:
                model.save_pretrained(save_directory)

        return str(Upload().push_to_hub(repo_id, **options))


def resolve_options(
    name: str, options: Mapping[str, Any], similarity: Similarity, origins: dict[str, Origin]
) -> dict[str, Any]:
    """Return all options of a similarity and its parts, defaults included; fill `origins`."""
    info = available_similarities([name])[name]
    origins[name] = Origin.of(info)
    resolved = {**info.options, **options}
    parts = getattr(similarity, "parts", None)
    if info.composite and "parts" in info.options and isinstance(parts, Mapping):
        given = options.get("parts") or {}
        resolved["parts"] = {
            part: resolve_options(part, given.get(part) or {}, inner, origins)
            for part, inner in parts.items()
        }
        if "weights" in info.options:
            # These are the initial weights; the current ones are in the weights file.
            start = options.get("weights") or {}
            resolved["weights"] = {
                part: start.get(part, inner.default_weight) for part, inner in parts.items()
            }
    return resolved


def _save(model: TwoTowers, state: dict[str, Tensor], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        _write(model, state, staging)
        _move_into_place(staging, directory)
    except BaseException:
        # A second interrupt may have stopped the restoration; then the old files are only here.
        if not any((staging / PREVIOUS).glob("*")):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _write(model: TwoTowers, state: Mapping[str, Tensor], directory: Path) -> None:
    (directory / CONFIG).write_text(_as_json(_describe(model)) + "\n", encoding="utf-8")
    # Cloned, because safetensors rejects tensors that share memory, as tied weights do.
    own = own_weights(model, state)
    weights = {name: value.clone().contiguous() for name, value in own.items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    for attribute, prefix in language_model_keys(model).items():
        language_model = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        getattr(model, attribute).save(directory / attribute, language_model)
    for tower in (model.x_encoder, model.y_encoder):
        if isinstance(tower, TextTower):
            tower.tokenizer.save(directory)
    # safetensors creates files that only the owner may read, whatever the umask.
    for path in directory.rglob("*.safetensors"):
        shutil.copymode(directory / CONFIG, path)


def _describe(model: TwoTowers) -> SavedModel:
    towers: dict[str, Any] = {}
    modules: dict[str, str] = {}
    tokenizer = None
    for side in SIDES:
        tower = getattr(model, side.tower)
        if isinstance(tower, ModuleTower):
            kind = unsharded_class(tower.module)
            modules[side.argument] = f"{kind.__module__}.{kind.__qualname__}"
        elif isinstance(tower, HuggingFaceTextTower):
            towers[side.argument] = attrs.evolve(tower.config, pretrained=side.tower)
        elif isinstance(tower, SignalTower | TextTower):
            towers[side.argument] = tower.config
        if isinstance(tower, TextTower):
            tokenizer = tower.tokenizer.kind
    config, origins = model.config, dict[str, Origin]()
    if model.sequence_loss_fn is not None:
        options = resolve_options(
            config.sequence_similarity_type,
            config.sequence_similarity_options or {},
            model.sequence_loss_fn.similarity_fn,
            origins,
        )
        config = attrs.evolve(config, sequence_similarity_options=options)
    loss = available_losses([config.loss])[config.loss]
    config = attrs.evolve(config, **towers, loss_options=_loss_options(config))
    return SavedModel(
        clipseq_version=__version__,
        model=config,
        modules=modules,
        tokenizer=tokenizer,
        similarities=origins,
        losses={config.loss: Origin.of(loss)},
    )


def _loss_options(config: ModelConfig) -> dict[str, Any]:
    """Return all options of the loss, without an initial scale that comes from the temperature."""
    info = available_losses([config.loss])[config.loss]
    options = {**info.options, **(config.loss_options or {})}
    if info.starts_at_temperature and "init_scale" not in (config.loss_options or {}):
        del options["init_scale"]
    return options


def _as_json(saved: SavedModel) -> str:
    table = attrs.asdict(saved, recurse=False) | {"model": saved.model.table()}
    try:
        return json.dumps(to_plain(unstructure(table)), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        path, value, cause = _not_json("", table["model"], error)
        raise ValueError(
            f"{path} must be a value that JSON can represent, got {value!r} "
            f"({type(value).__name__}): {cause}; use plain, finite numbers, strings, lists and "
            f"dictionaries"
        ) from None


def _not_json(path: str, value: Any, cause: Exception) -> tuple[str, Any, Exception]:
    """Find the innermost value that JSON cannot represent; return its path, it and the cause."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        try:
            json.dumps(to_plain(unstructure({str(key): item})), allow_nan=False)
        except (TypeError, ValueError) as error:
            return _not_json(f"{path}.{key}" if path else str(key), item, error)
    return path, value, cause


def _move_into_place(staging: Path, directory: Path) -> None:
    """Replace all files or none: old files are set aside, and restored if a move fails."""
    previous = staging / PREVIOUS
    previous.mkdir()
    placed: list[str] = []
    try:
        for name in FILES:
            if (directory / name).exists():
                os.replace(directory / name, previous / name)
            if (staging / name).exists():
                placed.append(name)
                os.replace(staging / name, directory / name)
    except BaseException:
        for name in placed:
            if (directory / name).exists():
                os.replace(directory / name, staging / name)
        for path in previous.iterdir():
            os.replace(path, directory / path.name)
        raise
