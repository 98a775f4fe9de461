"""Saving a model into a folder, and uploading it; see `clipseq.model.saved` for the files."""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
from safetensors.torch import save_file
from torch import Tensor

from clipseq import __version__
from clipseq.config import to_plain, unstructure
from clipseq.distributed.sharding import gather_state, run_in_first_process, unsharded_class
from clipseq.encoders import (
    ByteTokenizer,
    HuggingFaceTextTower,
    ModuleTower,
    SignalTower,
    TextTower,
    TrainedTokenizer,
)
from clipseq.engine.files import write_through
from clipseq.engine.options import to_path
from clipseq.errors import CheckpointError
from clipseq.model.blueprint import check_loadable
from clipseq.model.card import write_card
from clipseq.model.config import SIDES, ModelConfig
from clipseq.model.saved import (
    CONFIG,
    FILES,
    TOKENIZER,
    WEIGHTS,
    CardFacts,
    Origin,
    SavedModel,
    TwoTowers,
    language_model_keys,
    own_weights,
    parse_saved,
)
from clipseq.model.wrappers import plain_names, unwrap
from clipseq.registry import available_losses, available_similarities
from clipseq.similarity import Similarity

PREVIOUS = "previous"
"""The folder, inside the temporary folder of a save, for the files that the save replaces."""


class SavesPretrained(TwoTowers):
    """A model that can be saved."""

    def save_pretrained(self, directory: str | Path, *, card: CardFacts | None = None) -> None:
        """Write the model into `directory`, which is created if necessary.

        Everything is written to a folder inside `directory` first and then moved into place, so
        an interrupted save leaves the previous files. Other files in `directory` are left alone.

        All options of similarity and loss are recorded: "combined" with the parts that it has now,
        so that a plugin that is installed later does not change the model.

        Parts that torch.compile has wrapped are saved under their plain names. A tower or a
        tokenizer of your own is recorded by its class, and is passed to `from_pretrained` again;
        what such a tokenizer writes is in the folder ``tokenizer``.

        A model that FSDP2 has sharded is saved whole. Every process must call this method, because
        weights are gathered from all of them; the first process writes, and all return when it is
        done.

        Args:
            directory: the folder to write into.
            card: facts for the model card (README.md) that the model does not know itself, such as
                its licence; None: those of `card`. A card from which somebody has removed the line
                that names clipseq as its author is left alone.

        Raises:
            CheckpointError: `from_pretrained` could not load the model, or would load another one:
                weights or modules are not those that the options describe (an adapter, a
                parametrised layer, an exchanged part), a weight is NaN, or a module has extra state
                that is not a tensor. Nothing is written.
            ValueError: a value that JSON cannot hold, most likely an option of the similarity.
            OSError: the directory cannot be written, or is a file.
            ClipseqError: in the other processes, if the first could not write.
        """
        folder = to_path("directory", directory)
        state, sharded = gather_state(self)
        if sharded:
            run_in_first_process(lambda: _save(self, plain_names(state), folder, card))
        else:
            _save(self, plain_names(state), folder, card)

    def push_to_hub(self, repo_id: str, *, card: CardFacts | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes, with a model card, to the Hugging Face hub.

        Args:
            repo_id: "owner/name"; created if necessary.
            card: facts for the model card; None: those of `card`.
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
                state, sharded = gather_state(model)
                write = partial(
                    _save, model, plain_names(state), save_directory, card, name=repo_id
                )
                run_in_first_process(write) if sharded else write()

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
        given = options.get("parts")
        if given is None:  # the similarity has chosen them itself
            given = {part: inner.combined_options for part, inner in parts.items()}
        resolved["parts"] = {
            part: resolve_options(
                part, given.get(part) or {}, cast(Similarity, unwrap(inner)), origins
            )
            for part, inner in parts.items()
        }
        if "weights" in info.options:
            # These are the initial weights; the current ones are in the weights file.
            start = options.get("weights") or {}
            resolved["weights"] = {
                part: start.get(part, inner.default_weight) for part, inner in parts.items()
            }
    return resolved


def _save(
    model: TwoTowers,
    state: dict[str, Any],
    directory: Path,
    card: CardFacts | None,
    *,
    name: str = ".",
) -> None:
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(
            f"directory must be a folder or not exist yet, got the file {directory}; "
            "choose another name"
        )
    state = _without_adapters(model, state)
    saved, tokenizer = _describe(model)
    text = _as_json(saved)
    # Compare with what a load will read, and not with what was meant to be written.
    read = _read_back(text, saved)
    check_loadable(model, state, read, getattr(tokenizer, "vocab_size", None))
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")
        _write(model, state, tokenizer, staging)
        write_card(
            model,
            saved,
            model.card if card is None else card,
            staging,
            name=name,
            previous=directory,
            metrics=model._card_metrics,
        )
        _move_into_place(staging, directory)
    except BaseException:
        # A second interrupt may have stopped the restoration; then the old files are only here.
        if not any((staging / PREVIOUS).glob("*")):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _without_adapters(model: TwoTowers, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with the adapters of pretrained towers merged into their weights."""
    merged = dict(state)
    for attribute, prefix in language_model_keys(model).items():
        tower: Any = unwrap(getattr(model, attribute))
        if tower.config.lora is None:
            continue
        own = {
            name.removeprefix(prefix): merged.pop(name) for name in state if name.startswith(prefix)
        }
        merged |= {prefix + name: value for name, value in tower.merged(own).items()}
    return merged


def _read_back(text: str, saved: SavedModel) -> SavedModel:
    """Return what a load reads; raise CheckpointError if it differs from what was written."""
    try:
        read = parse_saved(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the options must be read back unchanged, got {error}") from error
    for name in ("loss_options", "sequence_similarity_options"):
        written, found = getattr(saved.model, name), getattr(read.model, name)
        if to_plain(written) != to_plain(found):
            raise CheckpointError(
                f"{name} must be read back from JSON unchanged, got {found!r} for {written!r}; "
                "use strings as the keys of dictionaries"
            )
    return read


def _write(model: TwoTowers, state: Mapping[str, Tensor], tokenizer: Any, directory: Path) -> None:
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
    if tokenizer is not None:
        folder = directory
        if not _is_own_tokenizer(tokenizer):
            folder = directory / TOKENIZER
            folder.mkdir()
        tokenizer.save(folder)
    # safetensors creates files that only the owner may read, whatever the umask.
    for path in directory.rglob("*.safetensors"):
        shutil.copymode(directory / CONFIG, path)


def _describe(model: TwoTowers) -> tuple[SavedModel, Any]:
    """Return the content of config.json, and the tokenizer that belongs to it, or None."""
    towers: dict[str, Any] = {}
    modules: dict[str, str] = {}
    tokenizers: list[Any] = []
    for side in SIDES:
        tower = unwrap(getattr(model, side.tower))
        if isinstance(tower, ModuleTower):
            modules[side.argument] = _path(unsharded_class(unwrap(tower.module)))
        elif isinstance(tower, HuggingFaceTextTower):
            towers[side.argument] = attrs.evolve(
                tower.config, pretrained=side.tower, revision=None, lora=None
            )
        elif isinstance(tower, SignalTower | TextTower):
            towers[side.argument] = tower.config
        if isinstance(tower, TextTower) and not any(
            tower.tokenizer is other or type(tower.tokenizer) is type(other) is ByteTokenizer
            for other in tokenizers
        ):
            tokenizers.append(tower.tokenizer)
    if len(tokenizers) > 1:
        raise CheckpointError(
            "the text towers of a model must share one tokenizer, got two; build the model with "
            "tokenizer=..."
        )
    tokenizer = tokenizers[0] if tokenizers else None
    if tokenizer is not None and not _is_own_tokenizer(tokenizer):
        modules["tokenizer"] = _path(type(tokenizer))
    config, origins = model.config, dict[str, Origin]()
    if model.sequence_loss_fn is not None:
        options = resolve_options(
            config.sequence_similarity_type,
            config.sequence_similarity_options or {},
            cast(Similarity, unwrap(model.sequence_loss_fn.similarity_fn)),
            origins,
        )
        config = attrs.evolve(config, sequence_similarity_options=options)
    loss = available_losses([config.loss])[config.loss]
    config = attrs.evolve(config, **towers, loss_options=_loss_options(config))
    saved = SavedModel(
        clipseq_version=__version__,
        model=config,
        modules=modules,
        tokenizer=None if tokenizer is None or "tokenizer" in modules else tokenizer.kind,
        similarities=origins,
        losses={config.loss: Origin.of(loss)},
    )
    return saved, tokenizer


def _is_own_tokenizer(tokenizer: object) -> bool:
    """Return True for a tokenizer that clipseq can build again, and not for one derived from it."""
    return type(tokenizer) in (ByteTokenizer, TrainedTokenizer)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


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
    write_through(staging)
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
