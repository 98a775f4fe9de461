"""Similarities and losses by name: list them, create them, register them."""

import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from clipseq.engine.options import check_kind
from clipseq.errors import (
    PluginError,
    UnknownLossError,
    UnknownSimilarityError,
    end_clause,
    suggest,
)
from clipseq.losses import PairLoss
from clipseq.registry.discovery import (
    Catalogue,
    FailedPlugin,
    LoadedPlugin,
    Registry,
    describe,
)
from clipseq.registry.validation import Info, Kind, LossInfo, SimilarityInfo
from clipseq.similarity import Similarity

AnyInfo = TypeVar("AnyInfo", bound=Info)

_registry = Registry()


def available_similarities(names: Iterable[str] | None = None) -> Mapping[str, SimilarityInfo]:
    """List the registered similarities by name, in alphabetical order.

    The first call loads the plugins; each plugin that fails gives one `PluginWarning`.

    Args:
        names: if given, list only those of these names that are registered. A clash of other names
            is then not an error.

    Raises:
        PluginError: a name is offered twice, or (with ``CLIPSEQ_STRICT=1``) a plugin fails.
        TypeError: `names` are not strings.
    """
    names = None if names is None else _checked(names)
    _registry.find()
    return _listed(_registry.similarities, names)


def available_losses(names: Iterable[str] | None = None) -> Mapping[str, LossInfo]:
    """List the registered losses by name, in alphabetical order.

    Arguments and errors are those of `available_similarities`. Plugins are not loaded if `names`
    are built-in losses only.
    """
    names = None if names is None else _checked(names)
    if names is None or not all(map(_registry.losses.is_built_in, names)):
        _registry.find()
    return _listed(_registry.losses, names)


def _checked(names: Iterable[str]) -> list[str]:
    check_kind("names", names, Iterable, "a list of strings")
    listed = list(names)
    for name in listed:
        check_kind("names", name, str, "a list of strings")
    return listed


def get_similarity(name: str, /, **options: Any) -> Similarity:
    """Create a similarity by its name: ``get_similarity("local", window=16)``.

    Raises:
        UnknownSimilarityError: there is no similarity of that name; the message suggests the
            nearest.
        TypeError: the similarity has no such option; the message suggests the nearest.
        PluginError: the name is offered twice; or (with ``CLIPSEQ_STRICT=1``) a plugin fails; or
            the class's ``__init__`` does not call that of `Similarity`.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a similarity must be a string, got {name!r}")
    info = available_similarities([name]).get(name)
    if info is None:
        raise UnknownSimilarityError(_unknown(_registry.similarities, name))
    _check_options(_registry.similarities, info, options)
    return make_similarity(info, **options)


def get_loss(name: str, /, **options: Any) -> PairLoss:
    """Create a loss by its name: ``get_loss("clip", init_scale=20.0)``.

    Raises:
        UnknownLossError: there is no loss of that name; the message suggests the nearest.
        TypeError: the loss has no such option; the message suggests the nearest.
        PluginError: the name is offered twice; or (with ``CLIPSEQ_STRICT=1``) a plugin fails; or
            the class's ``__init__`` does not call that of `PairLoss`.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a loss must be a string, got {name!r}")
    info = available_losses([name]).get(name)
    if info is None:
        raise UnknownLossError(_unknown(_registry.losses, name))
    _check_options(_registry.losses, info, options)
    loss = _create(info, options)
    if not all(hasattr(loss, attribute) for attribute in ("log_scale", "gather")):
        raise PluginError(_incomplete(info, "super().__init__()"))
    return loss


def register_similarity(name: str, cls: type[Similarity]) -> None:
    """Register a class in this process, for a notebook or a test; the rules are those for plugins.

    A class with the same module and qualified name replaces the one that an earlier call
    registered, so that a notebook cell can be run again.

    Raises:
        PluginError: the name or the class breaks a rule, or the name is taken.
    """
    _registry.register(_registry.similarities, name, cls)


def register_loss(name: str, cls: type[PairLoss]) -> None:
    """Register a loss in this process; see `register_similarity`.

    Raises:
        PluginError: the name or the class breaks a rule, or the name is taken.
    """
    _registry.register(_registry.losses, name, cls)


def failed_plugins() -> tuple[FailedPlugin, ...]:
    """List the plugins that could not be loaded, with the cause."""
    _registry.find()
    return tuple(_registry.failed)


def disabled_plugins() -> tuple[str, ...]:
    """List the plugins that ``CLIPSEQ_DISABLE`` disables, by the names of their entry points."""
    _registry.find()
    return tuple(_registry.disabled)


@attrs.frozen
class Report:
    """The state of the registry.

    Attributes:
        loaded: the plugins that were loaded.
        failed: the plugins that could not be loaded.
        disabled: the entry points that ``CLIPSEQ_DISABLE`` disables.
        unmatched: the entries of ``CLIPSEQ_DISABLE`` that match no plugin.
        infos: the similarities by name, without those that are offered twice.
        losses: the losses by name, without those that are offered twice.
        problem: the reason why some or all names are unavailable, or None.
    """

    loaded: tuple[LoadedPlugin, ...]
    failed: tuple[FailedPlugin, ...]
    disabled: tuple[str, ...]
    unmatched: tuple[str, ...]
    infos: Mapping[str, SimilarityInfo]
    losses: Mapping[str, LossInfo]
    problem: str | None


def report() -> Report:
    """Describe the registry. Errors and warnings are part of the result instead of being raised."""
    problems = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _registry.find()
        except PluginError as error:
            problems.append(str(error))
    for catalogue in (_registry.similarities, _registry.losses):
        try:
            catalogue.require_single(None)
        except PluginError as error:
            problems.append(str(error))
    infos = _registry.similarities.infos
    if not infos and not problems:
        problems.append(
            "nothing is registered: "
            + (
                "CLIPSEQ_DISABLE leaves it out"
                if _registry.disabled
                else "the package clipseq is not installed (a source tree on the path has no "
                "entry points)"
            )
        )
    return Report(
        loaded=tuple(_registry.loaded),
        failed=tuple(_registry.failed),
        disabled=tuple(_registry.disabled),
        unmatched=tuple(_registry.unmatched),
        infos=MappingProxyType(dict(sorted(infos.items()))),
        losses=MappingProxyType(dict(sorted(_registry.losses.infos.items()))),
        problem="\n".join(problems) or None,
    )


def make_similarity(info: SimilarityInfo, /, **options: Any) -> Similarity:
    """Create the similarity that `info` describes, with these options.

    Raises:
        PluginError: its ``__init__`` does not call that of `Similarity`.
    """
    similarity = _create(info, options)
    # Without this check it would fail at its first use, deep in torch and without its name.
    if not all(hasattr(similarity, name) for name in ("embed_dim", "x_projection")):
        raise PluginError(_incomplete(info, "super().__init__(embed_dim=embed_dim)"))
    given = {**info.options, **options}.items()
    # Kept as text: an option may be a value that can neither be copied nor pickled.
    similarity._made_with = ", ".join(f"{name}={v!r}" for name, v in given if v is not None)
    return similarity


def _create(info: Info[Kind], options: Mapping[str, Any]) -> Kind:
    """Create an instance; an ``__init__`` that ends the program is an error that names it."""
    try:
        return info.cls(**options)
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # sys.exit(), or a test's skip()
        raise PluginError(
            f"{info.path} of {info.origin}: its __init__ must create {info.name!r} or raise an "
            f"error, got {describe(error)}; to leave it out, disable its plugin with "
            f"CLIPSEQ_DISABLE, or do not name it"
        ) from error


def _listed(catalogue: Catalogue[AnyInfo], names: list[str] | None) -> Mapping[str, AnyInfo]:
    catalogue.require_single(names)
    infos = sorted(catalogue.infos.items())
    return MappingProxyType({name: info for name, info in infos if names is None or name in names})


def _check_options(
    catalogue: Catalogue[AnyInfo], info: AnyInfo, options: Mapping[str, Any]
) -> None:
    for option in options:
        if option in info.options:
            continue
        others = [other for other in catalogue.infos.values() if option in other.options]
        if others and catalogue.noun == "loss":
            hint = f", which is an option of the loss {others[0].name!r}"
        elif option == "temperature" and "init_scale" in info.options:
            hint = ": init_scale is 1 / temperature"
        else:
            hint = suggest(option, info.options)
        known = ", ".join(info.options) or "none"
        raise TypeError(
            f"the {catalogue.noun} {info.name!r} has no option {option!r}"
            f"{end_clause(hint)} options: {known}"
        )


def _incomplete(info: Info[Any], call: str) -> str:
    return f"{info.path} of {info.origin}: its __init__ must call {call}"


def _unknown(catalogue: Catalogue[Any], name: str) -> str:
    message = f"no {catalogue.noun} named {name!r}"
    if name in _registry.disabled:
        return f"{message}: the plugin {name!r} is left out by CLIPSEQ_DISABLE"
    for failed in _registry.failed:
        if failed.name == name:
            return (
                f"{message}: the plugin {name!r} of {failed.distribution} {failed.version} "
                f"could not be loaded: {failed.cause}"
            )
    names = catalogue.names
    if not names and not _registry.disabled and not _registry.failed:
        return (
            f"{message}: nothing is registered, so the package clipseq is not installed (a source "
            "tree on the path has no entry points); install it with `pip install -e .` or "
            "`pip install clipseq`"
        )
    guess = end_clause(suggest(name, names))
    disabled = ", ".join(_registry.disabled)
    left_out = f" (left out by CLIPSEQ_DISABLE: {disabled})" if disabled else ""
    return f"{message}{guess} registered: {', '.join(names) or 'none'}{left_out}"
