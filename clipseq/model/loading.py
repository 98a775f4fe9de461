"""Loading a saved model; see `clipseq.model.saved` for its files."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from clipseq.config import structure
from clipseq.encoders import HuggingFaceTextTower, TextConfig
from clipseq.encoders.tokenizer import load_tokenizer
from clipseq.errors import CheckpointError
from clipseq.model.config import SIDES, ModelConfig
from clipseq.model.saved import CONFIG, WEIGHTS, Origin, SavedModel, own_weights
from clipseq.model.saving import SavesPretrained
from clipseq.registry import (
    LossInfo,
    SimilarityInfo,
    available_losses,
    available_similarities,
    disabled_plugins,
    failed_plugins,
)

Model = TypeVar("Model", bound="LoadsPretrained")

logger = logging.getLogger(__name__)


class LoadsPretrained(SavesPretrained):
    """A model that can be saved and loaded; it is built from the options of a `ModelConfig`."""

    @classmethod
    def from_pretrained(
        cls: type[Model],
        directory: str | Path,
        *,
        encoder_cfg: nn.Module | None = None,
        text_cfg: nn.Module | None = None,
    ) -> Model:
        """Load the model that `save_pretrained` wrote, in eval mode, on the CPU, in saved dtypes.

        To load a model from the hub, call
        ``CLIP.from_pretrained(huggingface_hub.snapshot_download("owner/name"))``.

        Args:
            directory: the folder that it was saved into.
            encoder_cfg: the tower of x, if that was a user's module; the saved weights are loaded
                into it.
            text_cfg: the tower of y, likewise.

        Raises:
            CheckpointError: a file is missing, corrupt or unreadable; a similarity or a loss is not
                installed (the error names plugin, distribution and version); weights do not fit
                (the error lists the keys); a tower was a module, which is not given.
            ValueError: a module is given for a tower that was not a module.
        """
        directory = Path(directory)
        saved = _read_config(directory)
        _check_plugins(saved, directory)
        given = {"encoder_cfg": encoder_cfg, "text_cfg": text_cfg}
        options: dict[str, Any] = {
            field.name: getattr(saved.model, field.name) for field in attrs.fields(ModelConfig)
        }
        for side in SIDES:
            module = _module(saved, given[side.argument], side.argument, directory)
            tower = options[side.argument]
            if module is not None:
                options[side.argument] = module
            elif isinstance(tower, TextConfig) and tower.pretrained is not None:
                options[side.argument] = attrs.evolve(tower, pretrained=str(directory / side.tower))
        if saved.tokenizer is not None:
            options["tokenizer"] = load_tokenizer(saved.tokenizer, directory)
        try:
            # The initial weights are replaced below, so their draws must not change later ones.
            with torch.random.fork_rng(devices=[]):
                model = cls(**options)
        except (TypeError, ValueError) as error:
            cause = "; ".join([str(error), *getattr(error, "__notes__", ())])
            raise CheckpointError(
                f"the model in {directory} cannot be built as its {CONFIG} says: {cause}"
            ) from error
        _load_weights(model, directory)
        return model.eval()


def _read_config(directory: Path) -> SavedModel:
    path = directory / CONFIG
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(table, dict) and "model" in table:
            table["model"] = ModelConfig.from_table(table["model"], where="model")
        return structure(SavedModel, table)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} is missing: expected a directory written by save_pretrained (a model of the "
            f"hub: huggingface_hub.snapshot_download gives its directory)"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not what save_pretrained writes: {error}") from error


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


def _module(
    saved: SavedModel, given: nn.Module | None, argument: str, directory: Path
) -> nn.Module | None:
    """Return the module to use as a tower; None if the tower is built from its config."""
    if argument not in saved.modules:
        if given is not None:
            raise ValueError(
                f"{argument} must be None, since that tower of the model in {directory} is "
                f"clipseq's own and is built from its {CONFIG}, got {type(given).__name__}; "
                f"leave it out"
            )
        return None
    if given is None:
        raise CheckpointError(
            f"a tower of the model in {directory} was the module {saved.modules[argument]}, which "
            f"only you can build: load with from_pretrained(..., {argument}=<the module>)"
        )
    return given


def _load_weights(model: SavesPretrained, directory: Path) -> None:
    path = directory / WEIGHTS
    try:
        path.open("rb").close()  # safetensors calls an unreadable file missing
        weights = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error
    own = own_weights(model, model.state_dict())
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "of another shape": [
            f"{name} (must be {tuple(own[name].shape)}, got {tuple(weights[name].shape)})"
            for name in sorted(own.keys() & weights.keys())
            if own[name].shape != weights[name].shape
        ],
    }
    if any(problems.values()):
        lines = [f"{problem}: {', '.join(keys)}" for problem, keys in problems.items() if keys]
        raise CheckpointError(f"the weights in {path} do not fit the model; " + "; ".join(lines))
    # Each weight keeps the dtype that it was saved in: a float64 model is restored exactly.
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, value in weights.items():
        tensors[name].data = tensors[name].data.to(value.dtype)
    model.load_state_dict(weights, strict=False)
    for tower in (model.x_encoder, model.y_encoder):
        if isinstance(tower, HuggingFaceTextTower):
            tower.language_model.to(tower.projection.weight.dtype)
