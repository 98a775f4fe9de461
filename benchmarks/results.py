"""The measurements, in a JSON file that is complete after each measurement."""

import contextlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "clipseq",
    "torch",
    "numpy",
    "tslearn",
    "pysdtw",
    "numba",
    "pylate",
    "x-clip",
    "open-clip-torch",
)

Entry = dict[str, Any]


def conditions(threads: int, timer: str) -> dict[str, Any]:
    """Return the conditions that all figures in one file share."""
    return {
        "machine": {"cpu": _cpu(), "cores": _cores(), "system": platform.system()},
        "threads": threads,
        "timer": timer,
        "versions": {"python": platform.python_version(), **_versions()},
    }


class Results:
    """The file of measurements; a file from other conditions is moved aside."""

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        self.path = path
        self.conditions = conditions
        self.entries: dict[tuple[str, str, str], Entry] = {}
        self.put_aside: Path | None = None
        if not path.exists():
            return
        old = json.loads(path.read_text())
        if _comparable(old["conditions"]) == _comparable(conditions):
            self.entries = {_key(entry): entry for entry in old["entries"]}
        else:
            self.put_aside = path.with_suffix(".previous.json")

    def has(self, label: str, size: str, padding: str) -> bool:
        """Return whether there is a figure, or the reason why there is none."""
        return (label, size, padding) in self.entries

    def add(self, entry: Entry) -> None:
        """Add an entry, replacing an older one, and write the file."""
        if self.put_aside and not self.entries:
            self.path.replace(self.put_aside)
        self.entries[_key(entry)] = entry
        content = {"conditions": self.conditions, "entries": list(self.entries.values())}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(self.path)


def _key(entry: Entry) -> tuple[str, str, str]:
    return entry["label"], entry["size"], entry["padding"]


def _comparable(conditions: dict[str, Any]) -> dict[str, Any]:
    # Installing another peer does not change the figures of the rest.
    versions = {name: conditions["versions"][name] for name in ("python", "torch", "numpy")}
    return {**conditions, "versions": versions}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    # torch's own version string includes the build, such as "+cpu".
    return found | {"torch": torch.__version__}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
