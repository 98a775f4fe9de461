"""Lists of the registered similarities and losses, as a table or as JSON."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from clipseq.registry import (
    LossInfo,
    SimilarityInfo,
    available_losses,
    available_similarities,
    disabled_plugins,
    failed_plugins,
)


@attrs.frozen
class Listing:
    """All registered similarities or losses, and the plugins that could not be loaded.

    Attributes:
        kind: "similarities" or "losses".
        entries: one mapping per registered name: name, distribution, version, summary and options.
        failed: one mapping per plugin that could not be loaded: name, distribution, version, cause.
        disabled: names of the plugins that CLIPSEQ_DISABLE disables.
    """

    kind: str
    entries: tuple[Mapping[str, Any], ...]
    failed: tuple[Mapping[str, Any], ...]
    disabled: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the listing as numbers, strings, lists and dictionaries."""
        entries = [
            {
                **entry,
                "options": {name: _plain(value) for name, value in entry["options"].items()},
            }
            for entry in self.entries
        ]
        return {self.kind: entries, "failed": [dict(plugin) for plugin in self.failed]}

    def print(self) -> None:
        """Print a table as wide as the terminal, and one line per plugin that failed."""
        columns = ["name", "distribution", "version", "summary", "options"]
        if any("default_weight" in entry for entry in self.entries):
            columns.insert(3, "weight")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column, no_wrap=column in ("name", "version"), overflow="fold")
        for entry in self.entries:
            table.add_row(*(_cell(entry, column) for column in columns))
        Console(highlight=False, markup=False).print(table)
        if not self.entries:
            print(
                f"none registered: CLIPSEQ_DISABLE leaves out {', '.join(self.disabled)}"
                if self.disabled
                else "none registered: clipseq itself is not installed (pip install .)"
            )
        for plugin in self.failed:
            print(
                f"could not be loaded: {plugin['name']!r} of {plugin['distribution']} "
                f"{plugin['version']}: {plugin['cause']}"
            )


def list_similarities() -> Listing:
    """Return the registered similarities, with their weights in `combined`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the listing reports the failures with their causes
        infos = available_similarities()
        return _list("similarities", [_describe_similarity(info) for info in infos.values()])


def list_losses() -> Listing:
    """Return the registered losses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the listing reports the failures with their causes
        return _list("losses", [_describe_loss(info) for info in available_losses().values()])


def _list(kind: str, entries: Sequence[Mapping[str, Any]]) -> Listing:
    failed = tuple(attrs.asdict(plugin) for plugin in failed_plugins())
    return Listing(kind, tuple(entries), failed, tuple(disabled_plugins()))


def _describe_similarity(info: SimilarityInfo) -> dict[str, Any]:
    return {
        **_describe(info),
        "default_weight": None if info.composite else info.default_weight,
        "composite": info.composite,
    }


def _describe_loss(info: LossInfo) -> dict[str, Any]:
    return {**_describe(info), "starts_at_temperature": info.starts_at_temperature}


def _describe(info: SimilarityInfo | LossInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "summary": info.summary,
        "options": dict(info.options),
    }


def _cell(entry: Mapping[str, Any], column: str) -> str:
    if column == "options":
        return ", ".join(f"{name}={value!r}" for name, value in entry["options"].items())
    if column == "weight":
        weight = entry["default_weight"]
        return "" if weight is None else f"{weight:g}"
    return str(entry[column])


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else repr(value)
