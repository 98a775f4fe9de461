"""Which similarities there are: found through entry points, each plugin on its own."""

import contextlib
import inspect
import os
import re
import shlex
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs
import pluggy

from clipseq.errors import PluginError, PluginWarning, UnknownSimilarityError, nearest
from clipseq.registry import hookspecs
from clipseq.similarity import Similarity

GROUP = "clipseq"
IN_PROCESS = "this process"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@attrs.frozen
class SimilarityInfo:
    """One registered similarity.

    Attributes:
        name: what `get_similarity` calls it.
        cls: the class.
        distribution: the installed distribution that it comes from, or "this process".
        version: that distribution's version, "" in process.
        summary: first line of the class's docstring.
        options: option -> default value.
        default_weight: its weight in ``combined`` unless told otherwise.
        composite: made of other similarities, hence not a part of ``combined``.
    """

    name: str
    cls: type[Similarity]
    distribution: str
    version: str
    summary: str
    options: Mapping[str, Any]
    default_weight: float
    composite: bool


@attrs.frozen
class LoadedPlugin:
    """A plugin that was loaded.

    Attributes:
        name: of its entry point.
        distribution: that it comes from.
        version: of the distribution.
        similarities: the names that it offers.
        seconds: that its import and its hook took in this process. What an earlier plugin, or
            anyone else, had imported already does not count again.
    """

    name: str
    distribution: str
    version: str
    similarities: tuple[str, ...]
    seconds: float


@attrs.frozen
class FailedPlugin:
    """A plugin that could not be loaded: its entry point, its distribution, and the cause."""

    name: str
    distribution: str
    version: str
    cause: str


class _Offer(NamedTuple):
    """A similarity, and the entry of ``CLIPSEQ_DISABLE`` that leaves its plugin out."""

    info: SimilarityInfo
    switch: str


class _Registry:
    """What is registered. Entry points are read at the first look-up, not at import."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._finding = False
        self._clear()

    def _clear(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._found = False
        self._offers: dict[str, list[_Offer]] = {}
        self.infos: dict[str, SimilarityInfo] = {}
        self.loaded: list[LoadedPlugin] = []
        self.failed: list[FailedPlugin] = []
        self.disabled: list[str] = []
        self.unmatched: list[str] = []

    @property
    def names(self) -> list[str]:
        """All that are offered, in alphabetical order: also twice, which `infos` does not have."""
        return sorted({*self.infos, *self._offers})

    def find(self, names: Iterable[str] | None = None) -> None:
        """Load every plugin, once, and raise which of `names` (None: of all) are offered twice."""
        with self._lock:
            # The lock keeps other threads out, not the one that loads.
            if self._finding:
                raise PluginError(
                    "a plugin must not look similarities up, or register one, while it is loaded: "
                    "do it where one of its own is made, in __init__"
                )
            if not self._found:
                self._finding = True
                try:
                    self._find()
                finally:
                    self._finding = False
            clashes = [
                _clash(name, offers)
                for name, offers in sorted(self._offers.items())
                if len(offers) > 1 and (names is None or name in names)
            ]
            if clashes:
                raise PluginError("\n".join(clashes))

    def _find(self) -> None:
        self._clear()
        disabled = _disabled()
        strict = os.environ.get("CLIPSEQ_STRICT", "") not in ("", "0")
        found = sorted(entry_points(group=GROUP), key=lambda e: e.name)
        self.unmatched = [d for d in disabled if not any(_means(d, e) for e in found)]
        for entry_point in found:
            if any(_means(entry, entry_point) for entry in disabled):
                self.disabled.append(entry_point.name)
            else:
                alone = [e.name for e in found].count(entry_point.name) == 1
                switch = entry_point.name if alone else _switch(entry_point)
                self._load(entry_point, strict, switch)
        self._found = True

    def _load(self, entry_point: EntryPoint, strict: bool, switch: str) -> None:
        distribution, version = _origin(entry_point)
        started = time.perf_counter()
        try:
            infos = list(self._offered(entry_point, distribution, version))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a module may call sys.exit(), or a test's skip()
            cause = cause_of(error)
            origin = f"{distribution} {version}".rstrip()
            message = (
                f"plugin {entry_point.name!r} of {origin} cannot be used: {cause}; "
                f"the others work without it (CLIPSEQ_DISABLE={switch} silences this)"
            )
            if strict:
                raise PluginError(message) from error
            self.failed.append(FailedPlugin(entry_point.name, distribution, version, cause))
            warnings.warn(message, PluginWarning, stacklevel=5)
            return
        seconds = time.perf_counter() - started
        names = tuple(info.name for info in infos)
        self.loaded.append(LoadedPlugin(entry_point.name, distribution, version, names, seconds))
        for info in infos:
            self._add(info, _switch(entry_point))

    def _offered(
        self, entry_point: EntryPoint, distribution: str, version: str
    ) -> Iterator[SimilarityInfo]:
        plugin = entry_point.load()
        others = self._manager.get_plugins() - {plugin}
        label = f"{distribution}:{entry_point.name}"
        self._manager.register(plugin, label)
        try:
            _check_hooks(self._manager, plugin)
            call = self._manager.subset_hook_caller("clipseq_similarities", others)
            for offered in call():
                if not isinstance(offered, Mapping):
                    raise TypeError(
                        "clipseq_similarities() must return a mapping name -> class, "
                        f"got {offered!r}"
                    )
                for name, cls in offered.items():
                    yield _info(name, cls, distribution, version)
        except BaseException:
            self._manager.unregister(plugin)
            raise

    def _add(self, info: SimilarityInfo, switch: str) -> None:
        offers = self._offers.setdefault(info.name, [])
        offers.append(_Offer(info, switch))
        if len(offers) == 1:
            self.infos[info.name] = info
        else:  # none of them wins
            self.infos.pop(info.name, None)

    def register(self, name: str, cls: type[Similarity]) -> None:
        self.find([name])
        with self._lock:
            info = _info(name, cls, IN_PROCESS, "")
            other = self.infos.get(name)
            # A notebook cell that is run again defines the same class anew: that is no clash.
            again = other is not None and (
                other.distribution == IN_PROCESS and _path(other.cls) == _path(cls)
            )
            if other is not None and not again:
                raise PluginError(
                    f"the similarity {name!r} is registered already: by {other.distribution} "
                    f"{other.version} ({_path(other.cls)}); choose another name for {_path(cls)}"
                )
            self.infos[name] = info


def _disabled() -> list[str]:
    entries = os.environ.get("CLIPSEQ_DISABLE", "").split(",")
    return [entry.strip() for entry in entries if entry.strip()]


def _switch(entry_point: EntryPoint) -> str:
    """The entry of ``CLIPSEQ_DISABLE`` that means this entry point and no other."""
    return f"{_origin(entry_point)[0]}:{entry_point.name}"


def _means(entry: str, entry_point: EntryPoint) -> bool:
    """Whether an entry of ``CLIPSEQ_DISABLE`` is its name, or DISTRIBUTION:NAME."""
    distribution, colon, name = entry.rpartition(":")
    if name != entry_point.name or not colon:
        return name == entry_point.name
    return _normalised(distribution) == _normalised(_origin(entry_point)[0])


def _normalised(distribution: str) -> str:
    # As package indexes do it: clipseq-foo and Clipseq_Foo are one distribution.
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _clash(name: str, offers: Sequence[_Offer]) -> str:
    count = "twice" if len(offers) == 2 else f"{len(offers)} times"
    by = " and ".join(
        f"by {info.distribution} {info.version} ({_path(info.cls)})" for info, _ in offers
    )
    choices = []
    for kept, _ in offers:
        others = [switch for info, switch in offers if info is not kept]
        value = shlex.quote(",".join([*_disabled(), *others]))
        choices.append(f"CLIPSEQ_DISABLE={value} keeps that of {kept.distribution}")
    return (
        f"the similarity {name!r} is offered {count}: {by}; uninstall all but one, or leave the "
        f"plugins of the others out: {', '.join(choices)}"
    )


def cause_of(error: BaseException) -> str:
    """The kind of an error, and what it says."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    name = version = None
    if entry_point.dist is not None:
        # Of a distribution without metadata they are None, or raise, as Python's version has it.
        with contextlib.suppress(Exception):
            name, version = entry_point.dist.name, entry_point.dist.version
    return name or f"unknown distribution of {entry_point.value}", version or ""


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    known = {name for name in vars(hookspecs) if name.startswith("clipseq_")}
    callers = manager.get_hookcallers(plugin) or []
    implemented = {caller.name for caller in callers}
    for name in implemented - known:
        raise PluginError(f"there is no hook {name!r}{nearest(name, known)}")
    if not implemented:
        raise PluginError(
            "it implements no hook: decorate clipseq_similarities() with clipseq.hookimpl"
        )


def _info(name: str, cls: type[Similarity], distribution: str, version: str) -> SimilarityInfo:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(f"a similarity's name must match [a-z][a-z0-9_]*, got {name!r}")
    if not isinstance(cls, type) or not issubclass(cls, Similarity):
        raise PluginError(f"{name!r} must be a subclass of clipseq.Similarity, got {cls!r}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise PluginError(f"{name!r}: {_path(cls)} does not define {missing}")
    for method in ("forward", "prepare", "compare", "explain"):
        if getattr(cls, method) is not getattr(Similarity, method):
            raise PluginError(f"{name!r}: {_path(cls)} overrides {method}, which is final")
    options = {}
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise PluginError(f"{name!r}: options must be named, not *args or **kwargs")
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.default is parameter.empty:
            raise PluginError(
                f"{name!r}: the option {parameter.name!r} must be a keyword with a default value"
            )
        options[parameter.name] = parameter.default
    weight = cls.default_weight
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (number and 0 < weight < float("inf")):
        raise PluginError(
            f"{name!r}: default_weight must be a positive, finite number, got {weight!r}"
        )
    doc = inspect.getdoc(cls) if cls.__doc__ else None
    return SimilarityInfo(
        name=name,
        cls=cls,
        distribution=distribution,
        version=version,
        summary=doc.splitlines()[0] if doc else "",
        options=MappingProxyType(options),
        default_weight=float(weight),
        composite=cls.composite,
    )


_registry = _Registry()


def available_similarities(names: Iterable[str] | None = None) -> Mapping[str, SimilarityInfo]:
    """Return the registered similarities, by name, in alphabetical order.

    The first call loads the plugins: one that fails gives one `PluginWarning`.

    Args:
        names: the names to look up; those that are not registered are left out. None: all.

    Raises:
        PluginError: one of these names is offered twice, or (with ``CLIPSEQ_STRICT=1``) a plugin
            fails.
    """
    wanted = None if names is None else set(names)
    _registry.find(wanted)
    infos = sorted(_registry.infos.items())
    return MappingProxyType({n: info for n, info in infos if wanted is None or n in wanted})


def registered(names: Iterable[str]) -> Mapping[str, SimilarityInfo]:
    """Those of `names` that are registered; that another name is offered twice does not matter.

    Raises:
        PluginError: one of these names is offered twice; and see `available_similarities`.
    """
    names = list(names)
    _registry.find(names)
    return {name: _registry.infos[name] for name in names if name in _registry.infos}


def failed_plugins() -> tuple[FailedPlugin, ...]:
    """The plugins that could not be loaded, and why."""
    _registry.find(())
    return tuple(_registry.failed)


def disabled_plugins() -> tuple[str, ...]:
    """The plugins that ``CLIPSEQ_DISABLE`` leaves out, by the names of their entry points."""
    _registry.find(())
    return tuple(_registry.disabled)


def register_similarity(name: str, cls: type[Similarity]) -> None:
    """Register a class in this process, for a notebook or a test; same rules as a plugin.

    A class of the same module and qualified name replaces what an earlier call registered, so
    that a notebook cell can be run again.

    Raises:
        PluginError: a bad name or class, or the name is taken.
    """
    _registry.register(name, cls)


def get_similarity(name: str, /, **options: Any) -> Similarity:
    """A new similarity by its name: ``get_similarity("local", window=16)``.

    Raises:
        UnknownSimilarityError: no such name; the message suggests the nearest.
        TypeError: an unknown option; the message suggests the nearest.
        PluginError: that name is offered twice, or (with ``CLIPSEQ_STRICT=1``) a plugin fails; the
            class's ``__init__`` does not call that of `Similarity`.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a similarity is a string, got {name!r}")
    info = registered([name]).get(name)
    if info is None:
        raise UnknownSimilarityError(_unknown(name, _registry.names))
    for option in options:
        if option not in info.options:
            known = ", ".join(info.options) or "none"
            raise TypeError(
                f"the similarity {name!r} has no option {option!r}"
                f"{nearest(option, info.options)}; options: {known}"
            )
    return made(info, **options)


def made(info: SimilarityInfo, /, **options: Any) -> Similarity:
    """A new similarity of this kind, with these options.

    Raises:
        PluginError: its ``__init__`` does not call that of `Similarity`.
    """
    similarity = info.cls(**options)
    # Else it fails at its first use, deep in torch and without its name.
    if not all(hasattr(similarity, name) for name in ("embed_dim", "x_projection")):
        raise PluginError(
            f"{_path(info.cls)} of {info.distribution} {info.version}".rstrip()
            + ": its __init__ must call super().__init__(embed_dim=embed_dim)"
        )
    given = {**info.options, **options}.items()
    # As text: what the options are may be neither copied nor pickled, and need not be kept.
    similarity._made_with = ", ".join(f"{name}={v!r}" for name, v in given if v is not None)
    return similarity


def _unknown(name: str, names: Sequence[str]) -> str:
    message = f"no similarity named {name!r}"
    if name in _registry.disabled:
        return f"{message}: the plugin {name!r} is left out by CLIPSEQ_DISABLE"
    for failed in _registry.failed:
        if failed.name == name:
            return (
                f"{message}: the plugin {name!r} of {failed.distribution} {failed.version} "
                f"could not be loaded: {failed.cause}"
            )
    if not names and not _registry.disabled and not _registry.failed:
        return (
            f"{message}: nothing is registered, so the package clipseq is not installed (a source "
            "tree on the path has no entry points); install it with `pip install -e .` or "
            "`pip install clipseq`"
        )
    guess = nearest(name, names) or ";"
    disabled = ", ".join(_registry.disabled)
    left_out = f" (left out by CLIPSEQ_DISABLE: {disabled})" if disabled else ""
    return f"{message}{guess} registered: {', '.join(names) or 'none'}{left_out}"
