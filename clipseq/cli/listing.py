"""Tables of the registered similarities, for people and as JSON."""

import warnings
from collections.abc import Mapping
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from clipseq.registry import available_similarities, disabled_plugins, failed_plugins


@attrs.frozen
class Listing:
    """Everything of one kind that is registered, and the plugins that could not be loaded.

    Attributes:
        kind: "similarities".
        entries: one mapping per registered name: name, distribution, version, summary and options.
        failed: one mapping per plugin that could not be loaded: name, distribution, version, cause.
        disabled: names of the plugins that CLIPSEQ_DISABLE leaves out.
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
        failed = failed_plugins()
    entries = tuple(
        {
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "summary": info.summary,
            "options": dict(info.options),
            "default_weight": None if info.composite else info.default_weight,
            "composite": info.composite,
        }
        for info in infos.values()
    )
    return Listing(
        "similarities", entries, tuple(map(attrs.asdict, failed)), tuple(disabled_plugins())
    )


def _cell(entry: Mapping[str, Any], column: str) -> str:
    if column == "options":
        return ", ".join(f"{name}={value!r}" for name, value in entry["options"].items())
    if column == "weight":
        weight = entry["default_weight"]
        return "" if weight is None else f"{weight:g}"
    return str(entry[column])


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else repr(value)
