"""The model that a saved config describes, built without memory, and what it is compared with.

A save compares the model with it before it replaces any file, and a load compares the weights file
with it before it builds anything.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import attrs
import torch
from torch import Tensor, nn

from clipseq.distributed.sharding import unsharded_class
from clipseq.encoders import SignalConfig, TextConfig
from clipseq.errors import CheckpointError
from clipseq.model.config import SIDES, ModelConfig
from clipseq.model.saved import SavedModel, TwoTowers, language_model_keys
from clipseq.model.wrappers import COMPILED, plain_name, plain_names, unwrap
from clipseq.similarity import Similarity

T = TypeVar("T")

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The types in which a model's own weights are saved."""

EXTRA_STATE = "_extra_state"
"""The last part of the name under which torch saves what `nn.Module.get_extra_state` returns."""


class _Stand(nn.Module):
    """A stand-in for a tower that only its user, or transformers, can build."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class _StandTokenizer:
    """A stand-in for the tokenizer, of which only the number of ids matters."""

    kind = "byte"
    pad_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, caption: str) -> list[int]:
        raise NotImplementedError

    def tokens(self, caption: str) -> list[str]:
        raise NotImplementedError

    def save(self, directory: Any) -> None:
        raise NotImplementedError


class Weight(NamedTuple):
    """The shape of a weight, and its kind: "floating point", or the name of another dtype."""

    shape: tuple[int, ...]
    kind: str

    @classmethod
    def of(cls, value: Tensor) -> "Weight":
        """Describe a tensor."""
        return cls(tuple(value.shape), kind_of(value.dtype))


def kind_of(dtype: torch.dtype) -> str:
    """Return "floating point" for the dtypes of a model's own weights, else the dtype's name."""
    return "floating point" if dtype in FLOATS else str(dtype).removeprefix("torch.")


@attrs.frozen(eq=False)
class Blueprint:
    """A model on the meta device.

    Attributes:
        model: the model. Towers that it cannot build are stand-ins.
        unknown: the prefixes of the weights of these towers.
    """

    model: TwoTowers
    unknown: tuple[str, ...]

    def weights(self) -> dict[str, Weight]:
        """Describe its weights, except those of stand-ins."""
        return describe(self.of(self.model.state_dict()))

    def of(self, state: Mapping[str, T]) -> dict[str, T]:
        """Return those entries of `state` that do not belong to a stand-in."""
        return {name: value for name, value in state.items() if not name.startswith(self.unknown)}


def make_blueprint(cls: type[TwoTowers], saved: SavedModel, vocab_size: int | None) -> Blueprint:
    """Build the model that `saved` describes, without memory for its weights.

    Args:
        cls: the class of the model.
        saved: the content of config.json.
        vocab_size: number of ids of the tokenizer; None if no tower takes one.

    Raises:
        Exception: whatever the class, a similarity or a loss raises for these options.
    """
    options = {field.name: getattr(saved.model, field.name) for field in attrs.fields(ModelConfig)}
    unknown = []
    for side, name in zip(SIDES, saved.model.names, strict=True):
        tower = options[side.argument]
        if side.argument in saved.modules or getattr(tower, "pretrained", None) is not None:
            options[side.argument] = _Stand(name)
            unknown.append(f"{side.tower}.")
    takes = any(
        isinstance(tower, TextConfig) for tower in (options[side.argument] for side in SIDES)
    )
    options["tokenizer"] = _StandTokenizer(vocab_size) if vocab_size and takes else None
    make: Any = cls
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = make(**options)
        except (NotImplementedError, RuntimeError):
            # A plugin may read the values of its parameters while it is created.
            model = make(**options)
    return Blueprint(model, tuple(unknown))


def require_plausible(saved: SavedModel, weights: Mapping[str, Weight]) -> None:
    """Raise CheckpointError if a size in a config is larger than the weights file can hold."""
    config = saved.model
    cells = sum(math.prod(weight.shape) for weight in weights.values())
    largest: dict[str, tuple[int, int]] = {}
    for side in SIDES:
        tower = getattr(config, side.argument)
        if side.argument in saved.modules:
            continue
        if isinstance(tower, SignalConfig):
            largest[f"{side.argument}.patch_frames"] = (tower.patch_frames, cells)
            for view, bins in tower.views.items():
                largest[f"{side.argument}.views.{view}"] = (bins, cells)
        elif isinstance(tower, TextConfig) and tower.pretrained is None:
            largest["context_length"] = (config.context_length, cells)
            largest[f"{side.argument}.vocab_size"] = (tower.vocab_size or 1, cells)
        else:
            continue
        largest["transformer_layers"] = (config.transformer_layers, len(weights))
        largest["transformer_width"] = (config.transformer_width, cells)
    for name, (size, most) in largest.items():
        if size > most:
            raise CheckpointError(
                f"model.{name} must be at most {most}, which is what the weights file can hold, "
                f"got {size}"
            )


def describe(state: Mapping[str, Any]) -> dict[str, Weight]:
    """Describe the tensors of a state dict, without the extra state of modules."""
    return {
        name: Weight.of(value)
        for name, value in state.items()
        if name.rpartition(".")[2] != EXTRA_STATE
    }


def misfits(expected: Mapping[str, Weight], found: Mapping[str, Weight]) -> str:
    """Describe how weights differ from the expected ones; return "" if they do not."""
    shared = sorted(expected.keys() & found.keys())
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} (must be {expected[name].shape}, got {found[name].shape})"
            for name in shared
            if expected[name].shape != found[name].shape
        ],
        "of another kind": [
            f"{name} (must be {expected[name].kind}, got {found[name].kind})"
            for name in shared
            if expected[name].kind != found[name].kind
        ],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)


def check_loadable(
    model: TwoTowers, state: Mapping[str, Any], saved: SavedModel, vocab_size: int | None
) -> None:
    """Raise CheckpointError unless a load of `saved` would give the model back.

    Args:
        model: the model that is to be saved.
        state: its weights, with plain names.
        saved: the content of its config.json.
        vocab_size: number of ids of its tokenizer; None if no tower takes one.
    """
    _check_values(model, state)
    cls = unsharded_class(unwrap(model))
    try:
        plan = make_blueprint(cast(type[TwoTowers], cls), saved, vocab_size)
    except Exception as error:
        raise _refusal(
            f"{cls.__qualname__} cannot be built from the options of CLIP alone: "
            f"{type(error).__name__}: {error}"
        ) from error
    expected, found = plan.weights(), describe(plan.of(state))
    for prefix, module in _language_models(model):
        weights = _weights_of_language_model(module)
        if weights is not None:
            expected |= {prefix + name: weight for name, weight in weights.items()}
            found |= describe({n: v for n, v in state.items() if n.startswith(prefix)})
    if difference := misfits(expected, found):
        raise _refusal(f"its weights are not those that its options describe; {difference}")
    _check_parts(model, plan)


def _refusal(reason: str) -> CheckpointError:
    return CheckpointError(
        f"the model must be one that from_pretrained can load: {reason}; undo the change to the "
        "model (merge an adapter, remove a parametrisation, pass options to CLIP), or save its "
        "state_dict() with torch.save"
    )


def _check_values(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse what a weights file cannot hold, or what would be a corrupt file."""
    parameters = set(plain_names(dict(model.named_parameters(remove_duplicate=False))))
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise _refusal(
                f"{name} must be a tensor, got {type(value).__name__} (the extra state of a module)"
            )
        if value.is_meta:
            raise _refusal(f"{name} must have values, got a tensor on the meta device")
        if value.layout is not torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else str(value.layout)
            raise _refusal(f"{name} must be a dense tensor, got {kind}")
        if name in parameters and value.is_floating_point() and bool(value.isnan().any()):
            raise _refusal(f"{name} must not be NaN, got NaN (training has diverged)")


def _language_models(model: TwoTowers) -> Iterator[tuple[str, nn.Module]]:
    for tower, prefix in language_model_keys(model).items():
        inner = unwrap(getattr(model, tower)).language_model
        yield prefix, unwrap(cast(nn.Module, inner))


def _weights_of_language_model(module: nn.Module) -> dict[str, Weight] | None:
    """Describe the weights that transformers would load again; None if it cannot say."""
    kind: Any = unsharded_class(module)
    if not kind.__module__.startswith("transformers."):
        return {}  # the wrapper of an adapter: every weight is unexpected
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            again: nn.Module = kind(module.config)
    except Exception:
        return None
    return describe(again.state_dict())


def _check_parts(model: TwoTowers, plan: Blueprint) -> None:
    """Refuse a part that was exchanged for another with the same weights, or other options."""
    parts = dict(_named_modules(model))
    for name, expected in _named_modules(plan.model):
        part = parts.get(name)
        if part is None or f"{name}.".startswith(plan.unknown):
            continue
        if not issubclass(unsharded_class(part), type(expected)):
            raise _refusal(
                f"{name} must be a {type(expected).__name__}, as its options say, "
                f"got {type(part).__name__}"
            )
        _check_options(name, part, expected)


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules(remove_duplicate=False):
        # The module inside of a wrapper has the same plain name.
        if name and name.rpartition(".")[2] != COMPILED:
            yield plain_name(name), unwrap(module)


def _check_options(name: str, part: nn.Module, expected: nn.Module) -> None:
    """Refuse a similarity or loss whose options were changed after it was made."""
    if not isinstance(expected, Similarity) and not hasattr(expected, "max_scale"):
        return
    for option, value in vars(expected).items():
        if option.startswith("_") or option == "training":
            continue
        if not isinstance(value, int | float | str | bool | tuple | None):
            continue
        now = getattr(part, option, value)
        if now != value:
            raise _refusal(
                f"{name}.{option} must be {value!r}, as the options it was made with say, "
                f"got {now!r}"
            )
