"""The layout of a demo's folder, and the settings of a finished demo in it."""

import json
from pathlib import Path
from typing import Any

import attrs

from clipseq.training import RunFolder


@attrs.frozen
class DemoFolder:
    """Paths of a demo: its data, its two runs and its results."""

    root: Path

    @property
    def data(self) -> Path:
        """The simulated data set."""
        return self.root / "data"

    @property
    def plain(self) -> RunFolder:
        """The run of plain CLIP."""
        return RunFolder(self.root / "plain")

    @property
    def combined(self) -> RunFolder:
        """The run of CLIP with `combined`."""
        return RunFolder(self.root / "combined")

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.root / "figures"

    @property
    def metrics(self) -> Path:
        """The JSON file with all numbers and the size and seed of the demo."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The report, which is written last: its presence means that the demo is finished."""
        return self.root / "report.txt"

    def is_empty(self) -> bool:
        """Return True if the folder does not exist or holds nothing."""
        return not self.root.exists() or not any(self.root.iterdir())

    def read_settings(self) -> dict[str, Any] | None:
        """Return the size and the seed of a finished demo, or None if there is none."""
        try:
            metrics = json.loads(self.metrics.read_text(encoding="utf-8"))
            settings = {"size": metrics["size"], "seed": metrics["seed"]}
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return settings if self.report.is_file() else None
