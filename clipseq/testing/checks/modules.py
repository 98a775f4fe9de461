"""Checks of a similarity as an nn.Module: options, state, copies, and repeated calls."""

import copy
import inspect
import io
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from clipseq.registry.validation import FINAL_OF_SIMILARITY
from clipseq.sequences import Sequences
from clipseq.similarity import Similarity
from clipseq.testing.conformance import Broken, Check, Subject, check_same
from clipseq.testing.outcome import outcome
from clipseq.testing.strategies import dense

_EMBED_DIM = 48
"""A size that most numbers of heads or groups divide."""


def options(subject: Subject) -> None:
    cls = type(subject.make())
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise Broken(
                f"the options of {cls.__qualname__} must be named, got *{parameter.name}; give "
                "each option a parameter of its own"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise Broken(
                f"the option {parameter.name!r} must be a keyword, got a positional-only parameter"
            )
        if parameter.default is parameter.empty:
            raise Broken(f"the option {parameter.name!r} must have a default value, got none")
    made = cls()
    if not isinstance(cls.composite, bool):
        raise Broken(f"composite must be a bool, got {cls.composite!r}")
    weight = cls.default_weight
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (number and 0 < weight < float("inf")):
        raise Broken(f"default_weight must be a positive number, got {weight!r}")
    made(*_inputs(subject if made.embed_dim is None else Subject(cls)))
    if "embed_dim" in inspect.signature(cls.__init__).parameters:
        _embed_dim_is_used(cls)


def _embed_dim_is_used(cls: Callable[..., Similarity]) -> None:
    try:
        found = cls(embed_dim=_EMBED_DIM).embed_dim
    except (ValueError, AssertionError, RuntimeError):  # torch's own attention asserts it
        return  # a size that does not fit the other defaults is rejected, not ignored
    if found != _EMBED_DIM:
        raise Broken(
            f"embed_dim must be {_EMBED_DIM} after __init__(embed_dim={_EMBED_DIM}), got {found}; "
            "pass it on to super().__init__(embed_dim=embed_dim)"
        )


def final_methods(subject: Subject) -> None:
    similarity = subject.make()
    for name in (*FINAL_OF_SIMILARITY, "__call__"):
        if getattr(type(similarity), name) is not getattr(Similarity, name):
            raise Broken(
                f"{name} must be that of clipseq.Similarity, got an override in "
                f"{type(similarity).__qualname__}"
            )
        if name in vars(similarity):
            raise Broken(f"{name} must be that of the class, got another one on the instance")


def deterministic(subject: Subject) -> None:
    similarity = subject.make().eval()
    first, second = _inputs(subject), _inputs(subject, seed=5)
    subject.example = {"x": first[0], "y": first[1]}
    before = _state(similarity)
    scores = similarity(*first)
    torch.rand(3)
    again = similarity(*first)
    if not torch.equal(scores, again):
        check_same(again, scores, 0.0, "at a second call, score", "at the first")
        raise Broken("the scores of a second call must be those of the first, got NaN")
    once, twice = (outcome(similarity, *_sequences(first)) for _ in range(2))
    check_same(twice.x, once.x, 0.0, "at a second call, the gradient of x", "at the first")
    similarity(*second)
    later = similarity(*first)
    check_same(later, scores, 0.0, "after another batch, score", "before it")
    for name, value in similarity.state_dict().items():
        if isinstance(value, Tensor) and not torch.equal(value, before[name]):
            raise Broken(f"{name!r} of the state must be unchanged by a call in eval mode")


def registered_tensors(subject: Subject) -> None:
    similarity = subject.make()
    for mode in (True, False):
        similarity.train(mode)
        similarity(*_inputs(subject))
        # A registered module or parameter may be listed once more: nn.LSTM lists its weights.
        registered = {id(kept) for kept in (*similarity.modules(), *similarity.parameters())}
        for path, module in similarity.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its methods are modules of their own
            for name, value in vars(module).items():
                if name in ("_parameters", "_buffers", "_modules"):
                    continue
                where = f"{path}.{name}" if path else name
                for leaf in _leaves(value):
                    if id(leaf) in registered:
                        continue
                    if isinstance(leaf, Tensor):
                        raise Broken(
                            f"the attribute {where!r} keeps a tensor; make it an nn.Parameter or a "
                            "buffer"
                        )
                    if isinstance(leaf, nn.Module):
                        raise Broken(f"the attribute {where!r} keeps a module {_instead(value)}")


def state_dict(subject: Subject) -> None:
    saved = subject.trained(torch.float32)
    stream = io.BytesIO()
    torch.save(saved.state_dict(), stream)
    stream.seek(0)
    loaded = subject.make().eval()
    loaded.load_state_dict(torch.load(stream, weights_only=True), strict=True)
    _equal(subject, loaded, saved, "after its state was saved and loaded")


def deepcopied(subject: Subject) -> None:
    similarity = subject.trained(torch.float32)
    _use(subject, similarity)
    copied = copy.deepcopy(similarity)
    _equal(subject, copied, similarity, "of a deepcopy")
    wanted = similarity(*_inputs(subject)).detach().clone()
    with torch.no_grad():
        for value in (*copied.parameters(), *copied.buffers()):
            value.mul_(3)
    found = similarity(*_inputs(subject))
    check_same(found, wanted, 0.0, "score", "before its deepcopy was changed")


def pickled(subject: Subject) -> None:
    similarity = subject.trained(torch.float32)
    _use(subject, similarity)
    loaded = pickle.loads(pickle.dumps(similarity))
    _equal(subject, loaded, similarity, "of a pickled copy")


def _use(subject: Subject, similarity: nn.Module) -> None:
    # Forward and backward may leave tensors of a graph behind, which must not be kept.
    outcome(similarity, *_sequences(_inputs(subject)))
    similarity(*(value.requires_grad_() for value in _inputs(subject)))


def _equal(subject: Subject, found: Similarity, wanted: Similarity, whose: str) -> None:
    inputs = _inputs(subject)
    subject.example = {"x": inputs[0], "y": inputs[1]}
    check_same(found(*inputs), wanted(*inputs), 1e-6, f"{whose}, score", "in the original")


def _inputs(subject: Subject, seed: int = 1) -> tuple[Tensor, Tensor]:
    return (
        dense(2, 4, subject.features, seed=seed, dtype=torch.float32),
        dense(3, 3, subject.features, seed=seed + 1, dtype=torch.float32),
    )


def _sequences(inputs: tuple[Tensor, Tensor]) -> tuple[Sequences, Sequences]:
    x, y = inputs
    return Sequences.from_tensor(x), Sequences.from_tensor(y)


def _state(module: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(dict(module.state_dict()))


_LISTS = (list, tuple, set, frozenset, deque)


def _leaves(value: Any, depth: int = 4) -> Iterator[Any]:
    parts = _parts(value) if depth else None
    if parts is None:
        yield value
    else:
        for part in parts:
            yield from _leaves(part, depth - 1)


def _parts(value: Any) -> Iterable[Any] | None:
    """Return the values in a container, a bound function or a plain object; None for others."""
    if isinstance(value, Tensor | nn.Module | type | FunctionType | ModuleType):
        return None
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, _LISTS):
        return value
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__,)
    return vars(value).values() if hasattr(value, "__dict__") else None


def _instead(value: Any) -> str:
    """Say how an attribute keeps a module, and how to register it."""
    if isinstance(value, Mapping):
        return "in a dict; use nn.ModuleDict"
    if isinstance(value, _LISTS):
        return f"in a {type(value).__name__}; use nn.ModuleList"
    return "that is not registered; assign the module to an attribute: self.name = ..."


CHECKS = (
    Check(
        "options",
        "every option is a keyword with a default, and embed_dim is used",
        options,
        "the signature of `__init__`: no *args, no **kwargs, a default for each option; "
        "super().__init__(embed_dim=embed_dim)",
    ),
    Check(
        "final_methods",
        "forward, prepare, prepare_side, compare, pairs, compare_pairs and explain are those of "
        "clipseq.Similarity",
        final_methods,
        "override `score`, `align`, `prepare_x`, `score_pairs`, or `score_all` for kernels of your "
        "own, instead",
    ),
    Check(
        "deterministic",
        "in eval mode the same inputs give the same scores, whatever was scored before",
        deterministic,
        "random numbers, dropout that ignores self.training, state that a call updates",
    ),
    Check(
        "registered_tensors",
        "every tensor and module that is kept is registered: it moves with .to() and is saved",
        registered_tensors,
        "`__init__`: use nn.Parameter, register_buffer, nn.ModuleList or nn.ModuleDict; caches "
        "that `prepare_x` or `score` fills",
    ),
    Check(
        "state_dict",
        "a fresh similarity that loads the state of another gives the same scores",
        state_dict,
        "numbers that are drawn in `__init__`, or learnt outside parameters and buffers",
    ),
    Check(
        "deepcopy",
        "a deepcopy gives the same scores, and shares nothing with the original",
        deepcopied,
        "tensors of a graph that are kept, and parameters that are shared through a global",
    ),
    Check(
        "pickle",
        "a pickled copy gives the same scores",
        pickled,
        "attributes that hold lambdas, local functions or open handles; a class that cannot be "
        "imported",
    ),
)
