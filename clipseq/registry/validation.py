"""The rules for registered names and classes, and the record of a registered class."""

import inspect
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import attrs
from torch import nn

from clipseq.errors import PluginError
from clipseq.losses import PairLoss
from clipseq.similarity import Similarity

_NAME = re.compile(r"[a-z][a-z0-9_]*")

Kind = TypeVar("Kind", bound=nn.Module)


@attrs.frozen
class Info(Generic[Kind]):
    """One registered class.

    Attributes:
        name: the name by which it is looked up.
        cls: the class.
        distribution: the installed distribution that offers it, or "this process".
        version: that distribution's version; "" for "this process".
        summary: first line of the class's docstring.
        options: option -> default value.
    """

    name: str
    cls: type[Kind]
    distribution: str
    version: str
    summary: str
    options: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Module and qualified name of the class."""
        return path_of(self.cls)

    @property
    def origin(self) -> str:
        """The distribution with its version."""
        return f"{self.distribution} {self.version}".rstrip()


@attrs.frozen
class SimilarityInfo(Info[Similarity]):
    """One registered similarity.

    Attributes:
        name: the name by which `get_similarity` finds it.
        cls: the class.
        distribution: the installed distribution that offers it, or "this process".
        version: that distribution's version; "" for "this process".
        summary: first line of the class's docstring.
        options: option -> default value.
        default_weight: its starting weight in ``combined``.
        composite: True if it is made of other similarities, and so is not a part of ``combined``.
    """

    default_weight: float
    composite: bool


@attrs.frozen
class LossInfo(Info[PairLoss]):
    """One registered loss.

    Attributes:
        name: the name by which `get_loss` finds it.
        cls: the class.
        distribution: the installed distribution that offers it, or "this process".
        version: that distribution's version; "" for "this process".
        summary: first line of the class's docstring.
        options: option -> default value.
        starts_at_temperature: True if `CLIP` passes 1 / temperature as its `init_scale`.
    """

    starts_at_temperature: bool


def path_of(cls: type) -> str:
    """Return the module and the qualified name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def validate_similarity(name: Any, cls: Any, distribution: str, version: str) -> SimilarityInfo:
    """Return the record of a similarity.

    Raises:
        PluginError: the name or the class breaks a rule.
    """
    common = _validate(name, cls, "similarity", Similarity, FINAL_OF_SIMILARITY)
    weight = cls.default_weight
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (number and 0 < weight < float("inf")):
        raise PluginError(
            f"{name!r}: default_weight must be a positive, finite number, got {weight!r}"
        )
    options = cls.combined_options
    if not isinstance(options, Mapping) or not options.keys() <= common["options"].keys():
        raise PluginError(
            f"{name!r}: combined_options must map some of its options "
            f"({', '.join(common['options'])}) to values, got {options!r}"
        )
    return SimilarityInfo(
        distribution=distribution,
        version=version,
        default_weight=float(weight),
        composite=cls.composite,
        **common,
    )


def validate_loss(name: Any, cls: Any, distribution: str, version: str) -> LossInfo:
    """Return the record of a loss.

    Raises:
        PluginError: the name or the class breaks a rule.
    """
    common = _validate(name, cls, "loss", PairLoss, _FINAL_OF_LOSS)
    starts = cls.starts_at_temperature
    if not isinstance(starts, bool):
        raise PluginError(f"{name!r}: starts_at_temperature must be True or False, got {starts!r}")
    if starts and "init_scale" not in common["options"]:
        raise PluginError(
            f"{name!r}: a loss without the option init_scale must set "
            f"starts_at_temperature = False, got True"
        )
    return LossInfo(
        distribution=distribution, version=version, starts_at_temperature=starts, **common
    )


FINAL_OF_SIMILARITY = (
    "forward",
    "prepare",
    "prepare_side",
    "compare",
    "pairs",
    "compare_pairs",
    "explain",
)
_FINAL_OF_LOSS = ("forward", "from_scores", "from_sequences")


def _validate(
    name: object, cls: object, noun: str, base: type[nn.Module], final: tuple[str, ...]
) -> dict[str, Any]:
    """Check the rules common to similarities and losses; return the fields of their records."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(f"a {noun}'s name must match [a-z][a-z0-9_]*, got {name!r}")
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise PluginError(f"{name!r} must be a subclass of clipseq.{base.__name__}, got {cls!r}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise PluginError(f"{name!r}: {path_of(cls)} does not define {missing}")
    for method in final:
        if getattr(cls, method) is not getattr(base, method):
            raise PluginError(f"{name!r}: {path_of(cls)} overrides {method}, which is final")
    options = {}
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise PluginError(f"{name!r}: options must be named, got *args or **kwargs")
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.default is parameter.empty:
            raise PluginError(
                f"{name!r}: the option {parameter.name!r} must be a keyword with a default value"
            )
        options[parameter.name] = parameter.default
    doc = inspect.getdoc(cls) if cls.__doc__ else None
    return {
        "name": name,
        "cls": cls,
        "summary": doc.splitlines()[0] if doc else "",
        "options": MappingProxyType(options),
    }
