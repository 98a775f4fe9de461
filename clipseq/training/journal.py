"""metrics.csv and TensorBoard events: one row per optimizer step, continued on resume."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from clipseq.errors import ClipseqError


class Journal:
    """A table of the optimizer steps, in a CSV file and in TensorBoard.

    The columns are those of the first row plus ``val_<name>`` for each of its losses; the
    validation columns are empty in steps without validation. A row with more columns (a resumed
    run may log more) adds them; they are empty in earlier rows.

    Args:
        csv_path: the CSV file.
        events: folder of the TensorBoard event files.
        start: finished steps of the checkpoint that the run continues from; rows of later steps
            are dropped from both, since the run repeats these steps.
    """

    def __init__(self, csv_path: Path, events: Path, *, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ClipseqError(
                "training logs need tensorboard, which is not installed: "
                "pip install 'clipseq[train]'"
            ) from error
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rows(csv_path, start) if csv_path.exists() and start else []
        self._path = csv_path
        self._columns = list(kept[0]) if kept else []
        self._file = self._table(kept)
        # TensorBoard ignores the events of earlier files from purge_step on.
        self._events: Any = SummaryWriter(str(events), purge_step=start + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Add the row of optimizer step `step`, counted from 1."""
        if not row.keys() <= set(self._columns):
            losses = [f"val_{name}" for name in row if name.startswith("loss_")]
            self._columns = list(dict.fromkeys([*self._columns, "step", *row, *losses]))
            self._file.close()
            self._file = self._table(_rows(self._path, step - 1))
        entry = {"step": step} | {name: f"{value:.9g}" for name, value in row.items()}
        _writer(self._file, self._columns).writerow(entry)
        for name, value in row.items():
            group = "validation" if name.startswith("val_") else "train"
            self._events.add_scalar(f"{group}/{name.removeprefix('val_')}", value, step)

    def flush(self) -> None:
        """Write the rows so far to disk."""
        self._file.flush()
        self._events.flush()

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()

    def _table(self, kept: list[dict[str, str]]) -> IO[str]:
        """Write the CSV file with these rows, and open it for more."""
        # A temporary file is written and renamed, so that a kill loses no kept row.
        partial = self._path.with_name(self._path.name + ".part")
        with partial.open("w", newline="", encoding="utf-8") as lines:
            if self._columns:
                writer = _writer(lines, self._columns)
                writer.writeheader()
                writer.writerows(kept)
        os.replace(partial, self._path)
        return self._path.open("a", newline="", encoding="utf-8")


def _writer(lines: IO[str], columns: list[str]) -> "csv.DictWriter[str]":
    return csv.DictWriter(lines, columns, restval="", lineterminator="\n")


def _rows(path: Path, step: int) -> list[dict[str, str]]:
    """Read the rows of the steps up to `step`."""
    with path.open(newline="", encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if int(row["step"]) <= step]
