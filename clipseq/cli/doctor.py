"""Diagnosis of an installation, for bug reports: versions, plugins, engines and failures."""

import os
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import attrs
import torch

import clipseq
from clipseq.engine import Operator, obstacle
from clipseq.errors import suggest
from clipseq.registry import FailedPlugin, LoadedPlugin, SimilarityInfo, report
from clipseq.registry.discovery import describe
from clipseq.registry.lookup import make_similarity
from clipseq.similarity import Similarity


@attrs.frozen
class Engine:
    """The code that computes a similarity.

    Attributes:
        similarity: name of the similarity.
        pairs: code that loops over the pairs: "clipseq's tiles", "its parts'", or "its own".
        operators: custom operators that the class declares in its attribute `operators`.
        triton: devices on which Triton kernels of these operators run; None if no operator has
            kernels.
    """

    similarity: str
    pairs: str
    operators: tuple[str, ...]
    triton: tuple[str, ...] | None


@attrs.frozen
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        versions: versions of clipseq, python and torch, and the platform.
        plugins: plugins that were loaded.
        failed: plugins that could not be loaded.
        disabled: names of the plugins that ``CLIPSEQ_DISABLE`` disables.
        unmatched: entries of ``CLIPSEQ_DISABLE`` that match no plugin.
        unmade: similarity -> reason why it cannot be created with its default options. Empty if
            there is a problem.
        problem: reason why similarities are not available, or None.
        engines: the code that computes each similarity.
        devices: devices on which torch can compute, the CPU first.
        triton: device -> reason why Triton kernels do not run there, None if they do.
        threads: number of threads that torch uses for one operation.
        extras: extra -> its packages -> their versions, None for one that is not installed.
    """

    versions: dict[str, str]
    plugins: tuple[LoadedPlugin, ...]
    failed: tuple[FailedPlugin, ...]
    disabled: tuple[str, ...]
    unmatched: tuple[str, ...]
    unmade: dict[str, str]
    problem: str | None
    engines: tuple[Engine, ...]
    devices: tuple[str, ...]
    triton: dict[str, str | None]
    threads: int
    extras: dict[str, dict[str, str | None]]

    @property
    def healthy(self) -> bool:
        """True if everything that is installed works."""
        return self.problem is None and not self.failed and not self.unmade

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as numbers, strings, lists and dicts."""
        return {"healthy": self.healthy, **attrs.asdict(self)}

    def as_text(self) -> str:
        """Return the diagnosis as human-readable text."""
        return "\n".join(_lines(self)) + "\n"


def diagnose() -> Diagnosis:
    """Examine this process's Python, torch and plugins; errors become part of the result."""
    found = report()
    devices = dict(_devices())
    triton = {name: obstacle(torch.device(name)) for name in devices}
    return Diagnosis(
        versions={
            "clipseq": clipseq.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": f"{platform.system()} {platform.machine()}",
        },
        plugins=found.loaded,
        failed=found.failed,
        disabled=found.disabled,
        unmatched=found.unmatched,
        unmade={} if found.problem else dict(_unmade(found.infos)),
        problem=found.problem,
        engines=tuple(_engine(info, triton) for info in found.infos.values()),
        devices=tuple(f"{name}: {what}" if what else name for name, what in devices.items()),
        triton=triton,
        threads=torch.get_num_threads(),
        extras=_extras(),
    )


def _unmade(infos: Mapping[str, SimilarityInfo]) -> Iterator[tuple[str, str]]:
    for name, info in infos.items():
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                make_similarity(info)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the doctor must survive whatever a plugin raises
            yield name, describe(error)


def _engine(info: SimilarityInfo, triton: Mapping[str, str | None]) -> Engine:
    if info.composite:
        pairs = "its parts'"
    elif info.cls.score_all is Similarity.score_all:
        pairs = "clipseq's tiles"
    else:
        pairs = "its own"
    declared = info.cls.operators
    if not isinstance(declared, tuple):  # the doctor must survive whatever a plugin declares
        declared = ()
    operators = [operator for operator in declared if isinstance(operator, Operator)]
    devices = tuple(name for name, why_not in triton.items() if why_not is None)
    return Engine(
        info.name,
        pairs,
        operators=tuple(operator.name for operator in operators),
        triton=devices if any(operator.kernels for operator in operators) else None,
    )


def _devices() -> Iterator[tuple[str, str]]:
    capability = torch.backends.cpu.get_cpu_capability()
    yield "cpu", f"{os.cpu_count()} processors, {capability}"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        yield f"cuda:{index}", f"{device.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        yield "mps", ""


def _extras() -> dict[str, dict[str, str | None]]:
    try:
        requirements = metadata.requires("clipseq") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        # Users do not need the packages for development and docs, and `all` repeats the others.
        if package and extra and extra[1] not in ("dev", "docs", "all") and package[0] != "clipseq":
            try:
                version: str | None = metadata.version(package[0])
            except metadata.PackageNotFoundError:
                version = None
            extras.setdefault(extra[1], {})[package[0]] = version
    return extras


def _lines(found: Diagnosis) -> Iterator[str]:
    yield from (f"{name:<9} {version}" for name, version in found.versions.items())
    yield from (f"{'device':<9} {device}" for device in found.devices)
    yield from (
        f"{'triton':<9} {device}: {'used' if why_not is None else f'not used, {why_not}'}"
        for device, why_not in found.triton.items()
    )
    yield f"{'threads':<9} {found.threads}"
    for extra, packages in found.extras.items():
        listed = ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())
        yield f"{'[' + extra + ']':<9} {listed}"
    yield ""
    yield from _columns(
        ("plugin", "distribution", "version", "loaded in", "similarities"),
        [
            (
                p.name,
                p.distribution,
                p.version,
                f"{1e3 * p.seconds:.1f} ms",
                ", ".join(p.similarities),
            )
            for p in found.plugins
        ],
    )
    yield ""
    yield from _columns(
        ("similarity", "pairs by", "Triton kernels", "operators"),
        [
            (e.similarity, e.pairs, _triton(e), ", ".join(e.operators) or "torch's alone")
            for e in found.engines
        ],
    )
    yield ""
    yield from (f"left out by CLIPSEQ_DISABLE: {name}" for name in found.disabled)
    plugins = {p.name for p in found.plugins} | {p.name for p in found.failed}
    yield from (
        f"warning: CLIPSEQ_DISABLE names {entry!r}, which is not a plugin{suggest(entry, plugins)}"
        for entry in found.unmatched
    )
    yield from (
        f"cannot be used: {p.name} of {p.distribution} {p.version}: {p.cause}" for p in found.failed
    )
    yield from (f"cannot be made: {name}: {cause}" for name, cause in found.unmade.items())
    if found.problem:
        yield f"problem: {found.problem}"
    if found.healthy and not found.unmatched:
        yield "all is well"


def _triton(engine: Engine) -> str:
    if engine.triton is None:
        return "none"
    return f"on {', '.join(engine.triton)}" if engine.triton else "not used"


def _columns(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
