"""Discovery of installed plugins through entry points; each is loaded independently."""

import contextlib
import os
import re
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import pluggy

from clipseq import losses
from clipseq.engine.process_state import restored
from clipseq.errors import PluginError, PluginWarning, suggest
from clipseq.registry import hookspecs
from clipseq.registry.validation import (
    Info,
    LossInfo,
    SimilarityInfo,
    path_of,
    validate_loss,
    validate_similarity,
)

GROUP = "clipseq"
IN_PROCESS = "this process"

AnyInfo = TypeVar("AnyInfo", bound=Info)


@attrs.frozen
class LoadedPlugin:
    """A plugin that was loaded.

    Attributes:
        name: the name of its entry point.
        distribution: the distribution that it comes from.
        version: that distribution's version.
        similarities: the names of the similarities that it offers.
        losses: the names of the losses that it offers.
        seconds: the time that its import and its hooks took in this process, without modules that
            had been imported before.
    """

    name: str
    distribution: str
    version: str
    similarities: tuple[str, ...]
    losses: tuple[str, ...]
    seconds: float


@attrs.frozen
class FailedPlugin:
    """A plugin that could not be loaded: its entry point, its distribution, and the cause."""

    name: str
    distribution: str
    version: str
    cause: str


class _Offer(NamedTuple):
    """One offer of a name, and the entry of ``CLIPSEQ_DISABLE`` that disables its plugin."""

    info: Info
    switch: str


class Catalogue(Generic[AnyInfo]):
    """All similarities, or all losses, that are offered by name.

    Attributes:
        noun: the kind, for error texts.
        hook: the name of the hook through which plugins offer it.
        infos: name -> record, without the names that are offered twice.
    """

    def __init__(
        self,
        noun: str,
        hook: str,
        validate: Callable[[Any, Any, str, str], AnyInfo],
        built_in: Mapping[str, type],
    ) -> None:
        self.noun = noun
        self.hook = hook
        self._validate = validate
        self._built_in = built_in
        self.clear()

    def clear(self) -> None:
        """Forget everything except the built-ins."""
        self._offers: dict[str, list[_Offer]] = {}
        own = ("clipseq", _own_version())
        self.infos: dict[str, AnyInfo] = {
            name: self._validate(name, cls, *own) for name, cls in self._built_in.items()
        }

    @property
    def names(self) -> list[str]:
        """Every name on offer, in alphabetical order, including those offered twice."""
        return sorted({*self.infos, *self._offers})

    def is_built_in(self, name: str) -> bool:
        """Return True for the name of a built-in, which no plugin can offer."""
        return name in self._built_in

    def validate_offer(self, name: Any, cls: Any, distribution: str, version: str) -> AnyInfo:
        """Return the record of a plugin's class.

        Raises:
            PluginError: the name or the class breaks a rule, or the name is a built-in's.
        """
        info = self._validate(name, cls, distribution, version)
        if name in self._built_in:
            raise PluginError(self._taken(name, cls))
        return info

    def add(self, info: AnyInfo, switch: str) -> None:
        """Add a plugin's offer. If a name is offered twice, neither offer is available."""
        offers = self._offers.setdefault(info.name, [])
        offers.append(_Offer(info, switch))
        if len(offers) == 1:
            self.infos[info.name] = info
        else:
            self.infos.pop(info.name, None)

    def register(self, name: str, cls: type) -> None:
        """Add a class of this process; the rules are those for plugins."""
        info = self._validate(name, cls, IN_PROCESS, "")
        other = self.infos.get(name)
        # A notebook cell that is run again redefines the same class: this is not a clash.
        again = other is not None and (
            other.distribution == IN_PROCESS and other.path == path_of(cls)
        )
        if other is not None and not again:
            raise PluginError(self._taken(name, cls))
        self.infos[name] = info

    def require_single(self, names: Iterable[str] | None) -> None:
        """Raise PluginError if one of `names` (None: of all names) is offered twice."""
        clashes = [
            self._clash(name, offers)
            for name, offers in sorted(self._offers.items())
            if len(offers) > 1 and (names is None or name in names)
        ]
        if clashes:
            raise PluginError("\n".join(clashes))

    def _taken(self, name: str, cls: type) -> str:
        other = self.infos[name]
        return (
            f"the {self.noun} {name!r} is registered already by {other.origin} ({other.path}); "
            f"choose another name for {path_of(cls)}"
        )

    def _clash(self, name: str, offers: Sequence[_Offer]) -> str:
        count = "twice" if len(offers) == 2 else f"{len(offers)} times"
        by = " and ".join(f"by {info.origin} ({info.path})" for info, _ in offers)
        choices = []
        for kept, _ in offers:
            others = [switch for info, switch in offers if info is not kept]
            value = shlex.quote(",".join([*_disabled(), *others]))
            choices.append(f"CLIPSEQ_DISABLE={value} keeps that of {kept.distribution}")
        return (
            f"the {self.noun} {name!r} is offered {count}: {by}; uninstall or disable all but one "
            f"of these plugins: {', '.join(choices)}"
        )


class Registry:
    """Everything that is registered. Entry points are read at the first look-up, not at import.

    Attributes:
        similarities: the similarities by name.
        losses: the losses by name.
        loaded: the plugins that were loaded.
        failed: the plugins that could not be loaded.
        disabled: the entry points that ``CLIPSEQ_DISABLE`` disables.
        unmatched: the entries of ``CLIPSEQ_DISABLE`` that match no plugin.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._finding = False
        self.similarities: Catalogue[SimilarityInfo] = Catalogue(
            "similarity", "clipseq_similarities", validate_similarity, built_in={}
        )
        self.losses: Catalogue[LossInfo] = Catalogue(
            "loss", "clipseq_losses", validate_loss, built_in=losses.BUILT_IN
        )
        self._clear()

    def _clear(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._found = False
        self.similarities.clear()
        self.losses.clear()
        self.loaded: list[LoadedPlugin] = []
        self.failed: list[FailedPlugin] = []
        self.disabled: list[str] = []
        self.unmatched: list[str] = []

    def find(self) -> None:
        """Load every plugin, unless this has been done before."""
        with self._lock:
            # The lock keeps other threads out, but not the thread that is loading.
            if self._finding:
                raise PluginError(
                    "a plugin must not look up or register anything while it is loaded; do it in "
                    "the __init__ of its own class"
                )
            if not self._found:
                self._finding = True
                try:
                    self._find()
                finally:
                    self._finding = False

    def register(self, catalogue: Catalogue[Any], name: str, cls: type) -> None:
        """Add a class of this process to one of the catalogues."""
        self.find()
        catalogue.require_single([name])
        with self._lock:
            catalogue.register(name, cls)

    def _find(self) -> None:
        self._clear()
        disabled = _disabled()
        strict = os.environ.get("CLIPSEQ_STRICT", "") not in ("", "0")
        unreadable, everything = entry_points(GROUP)
        for owner, cause in unreadable:
            self._fail(
                owner.name,
                owner,
                cause,
                f"the entry points of {owner} cannot be read: {cause}; plugins in it are left out "
                "(install it again)",
                strict,
            )
        found = sorted(_distinct(everything), key=lambda e: e.name)
        self.unmatched = [d for d in disabled if not any(_matches(d, e) for e in found)]
        for entry_point in found:
            copies = [e for e in everything if _same_module(e, entry_point)]
            if any(_disables(entry, entry_point, copies) for entry in disabled):
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
            # What a plugin prints must not mix with what the program prints.
            with restored(), contextlib.redirect_stdout(sys.stderr):
                similarities, losses = self._read_offers(entry_point, distribution, version)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a module may call sys.exit(), or a test's skip()
            cause, owner = describe(error), _Owner(distribution, version)
            message = (
                f"plugin {entry_point.name!r} of {owner} cannot be used: {cause}; "
                f"the others work without it (CLIPSEQ_DISABLE={switch} silences this)"
            )
            self._fail(entry_point.name, owner, cause, message, strict, error)
            return
        seconds = time.perf_counter() - started
        self.loaded.append(
            LoadedPlugin(
                entry_point.name,
                distribution,
                version,
                similarities=tuple(info.name for info in similarities),
                losses=tuple(info.name for info in losses),
                seconds=seconds,
            )
        )
        for similarity in similarities:
            self.similarities.add(similarity, _switch(entry_point))
        for loss in losses:
            self.losses.add(loss, _switch(entry_point))

    def _fail(
        self,
        name: str,
        owner: "_Owner",
        cause: str,
        message: str,
        strict: bool,
        error: BaseException | None = None,
    ) -> None:
        """Record and report a plugin that cannot be used."""
        if strict:
            raise PluginError(message) from error
        self.failed.append(FailedPlugin(name, owner.name, owner.version, cause))
        warnings.warn(message, PluginWarning, stacklevel=6)

    def _read_offers(
        self, entry_point: EntryPoint, distribution: str, version: str
    ) -> tuple[list[SimilarityInfo], list[LossInfo]]:
        """Import a plugin and call its hooks; if one of its offers fails, none is added."""
        plugin = entry_point.load()
        self._manager.register(plugin, f"{distribution}:{entry_point.name}")
        try:
            _check_hooks(self._manager, plugin)
            return (
                list(self._offers_to(self.similarities, plugin, distribution, version)),
                list(self._offers_to(self.losses, plugin, distribution, version)),
            )
        except BaseException:
            self._manager.unregister(plugin)
            raise

    def _offers_to(
        self, catalogue: Catalogue[AnyInfo], plugin: object, distribution: str, version: str
    ) -> Iterator[AnyInfo]:
        others = self._manager.get_plugins() - {plugin}
        call = self._manager.subset_hook_caller(catalogue.hook, others)
        answers = call()
        # pluggy leaves out answers of None.
        if not answers and any(
            caller.name == catalogue.hook for caller in self._manager.get_hookcallers(plugin) or ()
        ):
            answers = [None]
        for offered in answers:
            if not isinstance(offered, Mapping):
                raise TypeError(
                    f"{catalogue.hook}() must return a mapping name -> class, got {offered!r}"
                )
            for name, cls in offered.items():
                yield catalogue.validate_offer(name, cls, distribution, version)


class _Owner(NamedTuple):
    """The distribution that a plugin comes from."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()


def entry_points(group: str) -> tuple[list[tuple[_Owner, str]], list[EntryPoint]]:
    """Return the distributions whose entry points cannot be read, and the entry points of `group`.

    `importlib.metadata.entry_points` raises if those of any distribution cannot be read, whether or
    not it has a plugin. The first copy of a distribution on the path counts.
    """
    unreadable: list[tuple[_Owner, str]] = []
    found: list[EntryPoint] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        # The name of its folder, which exists without metadata, too.
        folder = getattr(getattr(distribution, "_path", None), "name", "")
        key = _normalise(re.split(r"-\d", folder)[0].removesuffix(".egg-info"))
        if folder and key in seen:
            continue
        seen.add(key)
        try:
            found += [e for e in distribution.entry_points if e.group == group]
        except Exception as error:
            name = version = None
            with contextlib.suppress(Exception):
                name, version = distribution.name, distribution.version
            unreadable.append((_Owner(name or folder, version or ""), describe(error)))
    return unreadable, found


def _same_module(one: EntryPoint, other: EntryPoint) -> bool:
    return (one.name, one.value) == (other.name, other.value)


def _is_leftover(entry_point: EntryPoint) -> bool:
    """Return True if pip left this distribution behind when an upgrade was interrupted."""
    folder = getattr(getattr(entry_point.dist, "_path", None), "name", "")
    return folder.startswith("~")


def _distinct(found: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Return each module once, preferably from a distribution that is whole."""
    kept: list[EntryPoint] = []
    for entry_point in sorted(found, key=_is_leftover):
        if not any(_same_module(entry_point, other) for other in kept):
            kept.append(entry_point)
    return kept


def describe(error: BaseException) -> str:
    """Return the class of an error and its message."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _disabled() -> list[str]:
    entries = os.environ.get("CLIPSEQ_DISABLE", "").split(",")
    return [entry.strip() for entry in entries if entry.strip()]


def _switch(entry_point: EntryPoint) -> str:
    """Return the entry of ``CLIPSEQ_DISABLE`` that matches this entry point and no other."""
    return f"{_origin(entry_point)[0]}:{entry_point.name}"


def _matches(entry: str, entry_point: EntryPoint) -> bool:
    """Return True if an entry of ``CLIPSEQ_DISABLE`` is its NAME, or its DISTRIBUTION:NAME."""
    distribution, colon, name = entry.rpartition(":")
    if name != entry_point.name or not colon:
        return name == entry_point.name
    return _normalise(distribution) == _normalise(_origin(entry_point)[0])


def _disables(entry: str, entry_point: EntryPoint, copies: Sequence[EntryPoint]) -> bool:
    """Return True if an entry of ``CLIPSEQ_DISABLE`` leaves this plugin out.

    DISTRIBUTION:NAME chooses between several offers of a name. Where the distribution offers the
    same module several times, it leaves out the copies alone.
    """
    if not _matches(entry, entry_point):
        return False
    return ":" not in entry or sum(_matches(entry, copy) for copy in copies) == 1


def _normalise(distribution: str) -> str:
    # As on package indexes, clipseq-foo and Clipseq_Foo are the same distribution.
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    name = version = None
    if entry_point.dist is not None:
        # Without metadata these are None or raise, depending on Python's version.
        with contextlib.suppress(Exception):
            name, version = entry_point.dist.name, entry_point.dist.version
    return name or f"unknown distribution of {entry_point.value}", version or ""


def _own_version() -> str:
    try:
        return version("clipseq")
    except PackageNotFoundError:  # a source tree on the path
        return ""


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    known = [name for name in vars(hookspecs) if name.startswith("clipseq_")]
    callers = manager.get_hookcallers(plugin) or []
    implemented = {caller.name for caller in callers}
    for name in sorted(implemented.difference(known)):
        raise PluginError(f"there is no hook {name!r}{suggest(name, known)}")
    if not implemented:
        raise PluginError(
            f"it implements no hook: decorate {' or '.join(f'{name}()' for name in known)} with "
            "clipseq.hookimpl"
        )
