"""Loading a saved model; see `clipseq.model.saved` for its files."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from clipseq.encoders import HuggingFaceTextTower, TextConfig, Tokenizer
from clipseq.encoders.hub import find_folder
from clipseq.encoders.tokenizer import load_tokenizer
from clipseq.engine.options import to_path
from clipseq.errors import CheckpointError, ClipseqError
from clipseq.model.blueprint import (
    EXTRA_STATE,
    Weight,
    describe,
    make_blueprint,
    misfits,
    require_plausible,
)
from clipseq.model.card import read_facts
from clipseq.model.config import SIDES, ModelConfig
from clipseq.model.saved import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Origin,
    SavedModel,
    own_weights,
    read_saved,
)
from clipseq.model.saving import SavesPretrained
from clipseq.model.wrappers import plain_name, plain_names, unwrap
from clipseq.registry import (
    LossInfo,
    SimilarityInfo,
    available_losses,
    available_similarities,
    disabled_plugins,
    failed_plugins,
)

Model = TypeVar("Model", bound="LoadsPretrained")

_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "tokenizer/*", "README.md")
"""Patterns of the files of a saved model, its folders included."""

logger = logging.getLogger(__name__)


class LoadsPretrained(SavesPretrained):
    """A model that can be saved and loaded; it is built from the options of a `ModelConfig`."""

    @classmethod
    def from_pretrained(
        cls: type[Model],
        directory: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str | None = None,
        encoder_cfg: nn.Module | None = None,
        text_cfg: nn.Module | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Model:
        """Load the model that `save_pretrained` wrote, in eval mode, in the dtypes it was saved in.

        Args:
            directory: the folder that it was saved into, or "owner/name" of a model on the Hugging
                Face hub, which is downloaded once; a local folder of that name wins.
            revision: branch, tag or commit on the hub; None: its main branch.
            device: device to load it to; None: the CPU.
            encoder_cfg: the tower of x, if that was a user's module; the saved weights are loaded
                into it.
            text_cfg: the tower of y, likewise.
            tokenizer: the tokenizer, if that was the user's own; the files that it wrote are in
                ``directory / "tokenizer"``.

        Raises:
            ImportError: a model of the hub needs huggingface_hub, which is not installed.
            CheckpointError: the hub has no such model, or it cannot be reached; a file is missing,
                corrupt or unreadable; a similarity or a loss is not installed (the error names
                plugin, distribution and version); weights do not fit (the error lists the keys), or
                are NaN; a tower or the tokenizer was the user's own, and is not given.
            ValueError: a module or a tokenizer is given where clipseq builds its own.
            TypeError: `directory` is not a path.
        """
        name = str(to_path("directory", directory))
        directory, _ = find_folder(name, revision=revision, files=_HUB_FILES, option="directory")
        saved = read_saved(directory)
        _check_plugins(saved, directory)
        given = {"encoder_cfg": encoder_cfg, "text_cfg": text_cfg, "tokenizer": tokenizer}
        options: dict[str, Any] = {
            field.name: getattr(saved.model, field.name) for field in attrs.fields(ModelConfig)
        }
        for argument, value in given.items():
            options[argument] = _given(saved, value, argument, directory) or options[argument]
        for side in SIDES:
            tower = options[side.argument]
            if isinstance(tower, TextConfig) and tower.pretrained is not None:
                options[side.argument] = attrs.evolve(
                    tower, pretrained=str(directory / side.tower), revision=None
                )
        if saved.tokenizer is not None:
            options["tokenizer"] = load_tokenizer(saved.tokenizer, directory)
        _check_sizes(cls, saved, getattr(options["tokenizer"], "vocab_size", None), directory)
        with _built(directory), torch.random.fork_rng(devices=[]):
            # The initial weights are replaced below, so their draws must not change later ones.
            model = cls(**options)
        _load_weights(model, directory)
        model.card, model._card_metrics = read_facts(directory)
        return model.eval().to(device)


@contextmanager
def _built(directory: Path) -> Iterator[None]:
    """Raise CheckpointError for the errors of building a model from its config."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except (
        TypeError, ValueError, ClipseqError, RuntimeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        cause = "; ".join([str(error), *getattr(error, "__notes__", ())])
        raise CheckpointError(
            f"the model in {directory} cannot be built as its {CONFIG} says: {cause}"
        ) from error


def _check_sizes(
    cls: type[SavesPretrained], saved: SavedModel, vocab_size: int | None, directory: Path
) -> None:
    """Compare the weights file with the config, before memory is allocated for the model."""
    path = directory / WEIGHTS
    with _opened(path) as file:
        found = {name: _weight(file, name) for name in file.keys()}  # noqa: SIM118
    require_plausible(saved, found)
    with _built(directory):
        plan = make_blueprint(cls, saved, vocab_size)
    _refuse_misfits(plan.weights(), plan.of(_without_extra_state(found)), path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a weights file; raise CheckpointError for its errors."""
    try:
        path.open("rb").close()  # safetensors calls an unreadable file missing
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error


_FLOATS = ("F64", "F32", "BF16", "F16")
_OTHERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
           "BOOL": "bool"}  # fmt: skip


def _weight(file: Any, name: str) -> Weight:
    """Describe a weight from the header of its file."""
    entry = file.get_slice(name)
    kind = str(entry.get_dtype())
    named = "floating point" if kind in _FLOATS else _OTHERS.get(kind, kind)
    return Weight(tuple(entry.get_shape()), named)


def _without_extra_state(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    return {n: weight for n, weight in weights.items() if n.rpartition(".")[2] != EXTRA_STATE}


def _refuse_misfits(
    expected: Mapping[str, Weight], found: Mapping[str, Weight], path: Path
) -> None:
    if difference := misfits(expected, found):
        raise CheckpointError(f"the weights in {path} do not fit the model; {difference}")


def _check_plugins(saved: SavedModel, directory: Path) -> None:
    """Raise CheckpointError naming the similarities and losses that are not installed."""
    failed = {plugin.name: plugin.cause for plugin in failed_plugins()}
    disabled = disabled_plugins()
    missing: list[str] = []
    left_out: list[str] = []
    remedies: dict[str, None] = {}
    for noun, name, origin, info in _needed(saved):
        if info is None:
            cause = f", which fails to load: {failed[name]}" if name in failed else ""
            if name in disabled:
                cause = ", which CLIPSEQ_DISABLE leaves out"
                left_out.append(name)
            else:
                register = f"clipseq.register_{noun}"
                remedies[f"install it, or register it with {register}"] = None
            missing.append(
                f"{noun} {name!r} of {origin.distribution} {origin.version}{cause}".rstrip()
            )
        elif info.version != origin.version:
            logger.warning(
                "the model in %s was saved with %r of %s %s; this is %s %s",
                directory,
                name,
                origin.distribution,
                origin.version,
                info.distribution,
                info.version,
            )
    if left_out:
        remedies[f"take {', '.join(left_out)} out of CLIPSEQ_DISABLE"] = None
    if missing:
        raise CheckpointError(
            f"the model in {directory} needs the {'; the '.join(missing)}: "
            f"{'; '.join(remedies)}, and load again"
        )


def _needed(
    saved: SavedModel,
) -> Iterable[tuple[str, str, Origin, SimilarityInfo | LossInfo | None]]:
    """Yield each similarity and loss of a saved model, with its record if it is installed."""
    similarities = available_similarities(saved.similarities)
    for name, origin in saved.similarities.items():
        yield "similarity", name, origin, similarities.get(name)
    losses = available_losses(saved.losses)
    for name, origin in saved.losses.items():
        yield "loss", name, origin, losses.get(name)


def _given(saved: SavedModel, given: Any, argument: str, directory: Path) -> Any:
    """Return what the user has passed for a part that only the user can build; None for others."""
    if argument not in saved.modules:
        if given is not None:
            what = "tokenizer" if argument == "tokenizer" else "tower"
            raise ValueError(
                f"{argument} must be None, since that {what} of the model in {directory} is "
                f"clipseq's own and is built from its {CONFIG}, got {type(given).__name__}; "
                f"leave it out"
            )
        return None
    if given is None:
        kind = saved.modules[argument]
        if argument == "tokenizer":
            raise CheckpointError(
                f"the tokenizer of the model in {directory} was a {kind}, which only you can "
                f"build: load with from_pretrained(..., tokenizer=<the tokenizer>); the files that "
                f"it wrote are in {directory / TOKENIZER}"
            )
        raise CheckpointError(
            f"a tower of the model in {directory} was the module {kind}, which "
            f"only you can build: load with from_pretrained(..., {argument}=<the module>)"
        )
    return given


def _load_weights(model: SavesPretrained, directory: Path) -> None:
    path = directory / WEIGHTS
    with _opened(path) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = model.state_dict()
    named = {plain_name(name): name for name in state}
    own = own_weights(model, plain_names(state))
    _refuse_misfits(describe(own), describe(weights), path)
    # Each weight keeps the dtype that it was saved in: a float64 model is restored exactly.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    for name, value in weights.items():
        tensor = tensors.get(named[name])
        if tensor is None:  # extra state
            continue
        if named[name] in parameters and bool(value.isnan().any()):
            raise CheckpointError(f"{path} is corrupt: {name} holds NaN")
        tensor.data = tensor.data.to(value.dtype)
    try:
        model.load_state_dict({named[n]: value for n, value in weights.items()}, strict=False)
    except Exception as error:  # a user's module may load its state in its own way
        raise CheckpointError(f"the weights in {path} cannot be loaded: {error}") from error
    for tower in map(unwrap, (model.x_encoder, model.y_encoder)):
        if isinstance(tower, HuggingFaceTextTower):
            tower.language_model.to(tower.projection.weight.dtype)
