"""A model as a folder: config.json, model.safetensors, the tokenizer. No pickle anywhere.

config.json          how the model was built, and what it needs to be built again: which
                     similarity of which distribution and version
model.safetensors    every weight (of a Hugging Face text tower only the projection)
tokenizer.json       a trained tokenizer
y_encoder/           a Hugging Face text tower: config, weights (safetensors) and tokenizer
"""

import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import clipseq
from clipseq.config import plain, structure, unstructure
from clipseq.distributed.sharding import by_the_first_process, unsharded_class, whole_state
from clipseq.encoders import (
    HuggingFaceTextTower,
    ModuleTower,
    SignalConfig,
    SignalTower,
    TextConfig,
)
from clipseq.encoders.tokenizer import FILE_NAME, load_tokenizer
from clipseq.errors import CheckpointError, ConfigError
from clipseq.model.clip import CLIP
from clipseq.registry import available_similarities, disabled_plugins, failed_plugins
from clipseq.similarity import Similarity

Model = TypeVar("Model", bound=CLIP)

CONFIG, WEIGHTS, LANGUAGE_MODEL = "config.json", "model.safetensors", "y_encoder"
PREVIOUS = "previous"
_FILES = (WEIGHTS, FILE_NAME, LANGUAGE_MODEL, CONFIG)
# What these weights are called in the model; they are in y_encoder/ and not in the weights file.
_LANGUAGE_MODEL_KEYS = "y_encoder.language_model."

logger = logging.getLogger(__name__)


@attrs.frozen
class Origin:
    """Where a similarity came from when the model was saved."""

    distribution: str
    version: str


@attrs.frozen
class SavedModel:
    """What config.json holds. A tower is a config, or the name of the module that it was."""

    clipseq_version: str
    encoder_cfg: SignalConfig | None
    encoder_module: str | None
    text_cfg: TextConfig | None
    text_module: str | None
    tokenizer: str | None
    context_length: int
    transformer_width: int
    transformer_layers: int
    transformer_heads: int
    temperature: float
    use_siglip: bool
    use_sequence_similarity: bool
    sequence_similarity_type: str
    sequence_similarity_weight: float
    sequence_similarity_options: dict[str, Any]
    similarities: dict[str, Origin]


def save(model: CLIP, directory: Path) -> None:
    """Write the model into `directory`, which is made if need be.

    All is written to a folder inside `directory` first and then moved into place, so a save that
    is interrupted leaves what was there before. Other files in `directory` are left alone.

    The similarity's options are recorded in full: "combined" with the parts it has now, so that a
    plugin that is installed later does not change the model.

    A model that FSDP2 has sharded is saved whole: every process must call this, as its weights are
    gathered from all of them; the first process writes, and all return once it has.

    Raises:
        ValueError: a value that JSON cannot hold, most likely an option of the similarity.
        OSError: the directory cannot be written.
        ClipseqError: in the other processes, where the first could not write.
    """
    state, sharded = whole_state(model)
    if sharded:
        by_the_first_process(lambda: _save(model, state, directory))
    else:
        _save(model, state, directory)


def _save(model: CLIP, state: dict[str, Tensor], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        _write(model, state, staging)
        _move_into_place(staging, directory)
    except BaseException:
        # A second interrupt may have stopped the putting back; then the old files are only here.
        if not any((staging / PREVIOUS).glob("*")):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)


def load(
    cls: type[Model],
    directory: Path,
    encoder_cfg: nn.Module | None = None,
    text_cfg: nn.Module | None = None,
) -> Model:
    """The model that `save` wrote into `directory`, in eval mode, on the CPU, in its own dtypes.

    A model of the hub: ``CLIP.from_pretrained(huggingface_hub.snapshot_download("owner/name"))``.

    Args:
        cls: the class to build.
        directory: where it was saved.
        encoder_cfg: the radar tower, where that was a module of the user's own; the saved weights
            are loaded into it.
        text_cfg: the text tower, likewise.

    Raises:
        CheckpointError: a file is missing, corrupt or unreadable; a similarity is not installed (it
            names plugin, distribution and version); weights do not fit (it lists the keys); a tower
            was a module and is not given.
        ValueError: a module is given for a tower that was none.
    """
    saved = _read_config(directory)
    _check_similarities(saved, directory)
    radar = _tower(saved.encoder_cfg, saved.encoder_module, encoder_cfg, "encoder_cfg", directory)
    text = _tower(saved.text_cfg, saved.text_module, text_cfg, "text_cfg", directory)
    if saved.tokenizer == "hugging_face":
        text = attrs.evolve(text, pretrained=str(directory / LANGUAGE_MODEL))
    tokenizer = None
    if saved.tokenizer not in (None, "hugging_face"):
        tokenizer = load_tokenizer(str(saved.tokenizer), directory)
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, only to be replaced
            model = cls(
                radar,
                text,
                context_length=saved.context_length,
                transformer_width=saved.transformer_width,
                transformer_layers=saved.transformer_layers,
                transformer_heads=saved.transformer_heads,
                temperature=saved.temperature,
                use_siglip=saved.use_siglip,
                use_sequence_similarity=saved.use_sequence_similarity,
                sequence_similarity_type=saved.sequence_similarity_type,
                sequence_similarity_weight=saved.sequence_similarity_weight,
                sequence_similarity_options=saved.sequence_similarity_options,
                tokenizer=tokenizer,
            )
    except (TypeError, ValueError) as error:
        cause = "; ".join([str(error), *getattr(error, "__notes__", ())])
        raise CheckpointError(
            f"the model in {directory} cannot be built as its {CONFIG} says: {cause}"
        ) from error
    _load_weights(model, directory)
    return model.eval()


def push(model: CLIP, repo_id: str, **options: Any) -> str:
    """Upload what `save` writes, with a model card, to the Hugging Face hub.

    Args:
        model: the model.
        repo_id: "owner/name"; made if need be.
        options: those of huggingface_hub's ``ModelHubMixin.push_to_hub``: commit_message, private,
            token, branch, create_pr, ...

    Returns:
        the address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError("push_to_hub needs huggingface_hub: pip install 'clipseq[hf]'")
    from huggingface_hub import ModelHubMixin

    # The mixin is asked for here and not inherited, so that importing clipseq does not import it.
    class Upload(ModelHubMixin, library_name="clipseq", tags=["clipseq"]):
        def _save_pretrained(self, save_directory: Path) -> None:
            save(model, save_directory)

    return str(Upload().push_to_hub(repo_id, **options))


def _write(model: CLIP, state: Mapping[str, Tensor], directory: Path) -> None:
    text = model.y_encoder
    hugging_face = isinstance(text, HuggingFaceTextTower)
    radar_cfg = model.x_encoder.config if isinstance(model.x_encoder, SignalTower) else None
    text_cfg: Any = None if isinstance(text, ModuleTower) else text.config
    if hugging_face and text_cfg is not None:
        text_cfg = attrs.evolve(text_cfg, pretrained=LANGUAGE_MODEL)
    options: dict[str, Any] = dict(model.sequence_similarity_options)
    origins: dict[str, Origin] = {}
    if model.sequence_loss_fn is not None:
        options = resolved_options(
            model.sequence_similarity_type, options, model.sequence_loss_fn.similarity_fn, origins
        )
    saved = SavedModel(
        clipseq_version=clipseq.__version__,
        encoder_cfg=radar_cfg,
        encoder_module=_module_name(model.x_encoder),
        text_cfg=text_cfg,
        text_module=_module_name(text),
        tokenizer=None if model.tokenizer is None else model.tokenizer.kind,
        context_length=model.context_length,
        transformer_width=model.transformer_width,
        transformer_layers=model.transformer_layers,
        transformer_heads=model.transformer_heads,
        temperature=model.temperature,
        use_siglip=model.use_siglip,
        use_sequence_similarity=model.use_sequence_similarity,
        sequence_similarity_type=model.sequence_similarity_type,
        sequence_similarity_weight=model.sequence_similarity_weight,
        sequence_similarity_options=options,
        similarities=origins,
    )
    (directory / CONFIG).write_text(_as_json(saved) + "\n", encoding="utf-8")
    # Cloned: safetensors refuses tensors that share memory, as tied weights do.
    own = _own_weights(model, state)
    weights = {name: value.clone().contiguous() for name, value in own.items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    if isinstance(text, HuggingFaceTextTower):
        language_model = {
            name.removeprefix(_LANGUAGE_MODEL_KEYS): value
            for name, value in state.items()
            if name.startswith(_LANGUAGE_MODEL_KEYS)
        }
        text.save(directory / LANGUAGE_MODEL, language_model)
    elif model.tokenizer is not None:
        model.tokenizer.save(directory)
    # safetensors makes files for the owner alone, whatever the umask.
    for path in directory.rglob("*.safetensors"):
        shutil.copymode(directory / CONFIG, path)


def _as_json(saved: SavedModel) -> str:
    try:
        return json.dumps(plain(unstructure(saved)), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        path, value, cause = _not_json("", attrs.asdict(saved, recurse=False), error)
        raise ValueError(
            f"{path}: {value!r} ({type(value).__name__}) cannot be saved as JSON: {cause}; use "
            f"plain, finite numbers, strings, lists and dictionaries"
        ) from None


def _not_json(path: str, value: Any, cause: Exception) -> tuple[str, Any, Exception]:
    """The innermost value that JSON cannot hold: its dotted path, itself, and why."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        try:
            json.dumps(plain(unstructure({str(key): item})), allow_nan=False)
        except (TypeError, ValueError) as error:
            return _not_json(f"{path}.{key}" if path else str(key), item, error)
    return path, value, cause


def _move_into_place(staging: Path, directory: Path) -> None:
    """Replace all files or none: what was there is set aside, and put back if anything fails."""
    previous = staging / PREVIOUS
    previous.mkdir()
    placed: list[str] = []
    try:
        for name in _FILES:
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


def resolved_options(
    name: str, options: Mapping[str, Any], similarity: Similarity, origins: dict[str, Origin]
) -> dict[str, Any]:
    """All options of a similarity, defaults too, and those of its parts; fills `origins`."""
    info = available_similarities([name])[name]
    origins[name] = Origin(info.distribution, info.version)
    resolved = {**info.options, **options}
    parts = getattr(similarity, "parts", None)
    if info.composite and "parts" in info.options and isinstance(parts, Mapping):
        given = options.get("parts") or {}
        resolved["parts"] = {
            part: resolved_options(part, given.get(part) or {}, inner, origins)
            for part, inner in parts.items()
        }
        if "weights" in info.options:
            # where they started; where they are now is in the weights file
            start = options.get("weights") or {}
            resolved["weights"] = {
                part: start.get(part, inner.default_weight) for part, inner in parts.items()
            }
    return resolved


def _module_name(tower: nn.Module) -> str | None:
    if not isinstance(tower, ModuleTower):
        return None
    kind = unsharded_class(tower.module)
    return f"{kind.__module__}.{kind.__qualname__}"


def _own_weights(model: CLIP, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the model's weights that go into the weights file."""
    if isinstance(model.y_encoder, HuggingFaceTextTower):
        return {k: v for k, v in state.items() if not k.startswith(_LANGUAGE_MODEL_KEYS)}
    return dict(state)


def _read_config(directory: Path) -> SavedModel:
    path = directory / CONFIG
    try:
        return structure(SavedModel, json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} is missing: expected a directory written by save_pretrained (a model of the "
            f"hub: huggingface_hub.snapshot_download gives its directory)"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error
    except ConfigError as error:
        raise CheckpointError(f"{path} is not what save_pretrained writes: {error}") from error


def _check_similarities(saved: SavedModel, directory: Path) -> None:
    installed = available_similarities(saved.similarities)
    failed = {plugin.name: plugin.cause for plugin in failed_plugins()}
    disabled = disabled_plugins()
    missing: list[str] = []
    left_out: list[str] = []
    for name, origin in saved.similarities.items():
        if name not in installed:
            cause = f", which fails to load: {failed[name]}" if name in failed else ""
            if name in disabled:
                cause = ", which CLIPSEQ_DISABLE leaves out"
                left_out.append(name)
            missing.append(f"{name!r} of {origin.distribution} {origin.version}{cause}".rstrip())
        elif installed[name].version != origin.version:
            logger.warning(
                "the model in %s was saved with %r of %s %s; this is %s %s",
                directory,
                name,
                origin.distribution,
                origin.version,
                installed[name].distribution,
                installed[name].version,
            )
    if missing:
        remedies = []
        if len(missing) > len(left_out):
            remedies.append("install it, or register it with clipseq.register_similarity")
        if left_out:
            remedies.append(f"take {', '.join(left_out)} out of CLIPSEQ_DISABLE")
        raise CheckpointError(
            f"the model in {directory} needs the similarity {'; '.join(missing)}: "
            f"{'; '.join(remedies)}, and load again"
        )


def _tower(
    config: Any, module_name: str | None, given: nn.Module | None, argument: str, directory: Path
) -> Any:
    if module_name is None:
        if given is not None:
            raise ValueError(
                f"{argument} was given, but the tower in {directory} is one of clipseq's own and "
                f"is built from its {CONFIG}: leave it out"
            )
        return config
    if given is None:
        raise CheckpointError(
            f"a tower of the model in {directory} was the module {module_name}, which only you can "
            f"build: load with from_pretrained(..., {argument}=<the module>)"
        )
    return given


def _load_weights(model: CLIP, directory: Path) -> None:
    path = directory / WEIGHTS
    try:
        path.open("rb").close()  # safetensors calls a file missing that it may not read
        weights = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error
    own = _own_weights(model, model.state_dict())
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "of another shape": [
            f"{name} (wanted {tuple(own[name].shape)}, got {tuple(weights[name].shape)})"
            for name in sorted(own.keys() & weights.keys())
            if own[name].shape != weights[name].shape
        ],
    }
    if any(problems.values()):
        lines = [f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys]
        raise CheckpointError(f"the weights in {path} do not fit the model; " + "; ".join(lines))
    # Each in the dtype in which it was saved: a float64 model comes back bit by bit.
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, value in weights.items():
        tensors[name].data = tensors[name].data.to(value.dtype)
    model.load_state_dict(weights, strict=False)
    if isinstance(model.y_encoder, HuggingFaceTextTower):
        text = model.y_encoder
        text.language_model.to(text.projection.weight.dtype)
