"""metrics.csv and TensorBoard events: one row per optimizer step, continued on resume."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipseq.errors import ClipseqError


class Journal:
    """Writes one row per optimizer step to a CSV file and to TensorBoard.

    The columns are those of the first row plus ``val_<name>`` for each of its losses; the
    validation columns are empty on steps without validation.

    Args:
        csv_path: the CSV file.
        events: folder of the TensorBoard event files.
        start: rows from this step on belong to a future that did not happen (the run stopped and
            is picked up at its last checkpoint) and are dropped from both.
    """

    def __init__(self, csv_path: Path, events: Path, *, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ClipseqError(
                "training logs need tensorboard: pip install 'clipseq[train]'"
            ) from error
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rows_before(csv_path, start) if csv_path.exists() and start else []
        self._file = csv_path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None
        if kept:
            self._open_table(list(kept[0])).writerows(kept)
        # TensorBoard reads purge_step as: forget what an earlier file says of these steps.
        self._events: Any = SummaryWriter(str(events), purge_step=start + 1 if start else None)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Add the row of optimizer step `step` (counted from 1)."""
        writer = self._writer
        if writer is None:
            losses = [f"val_{name}" for name in row if name.startswith("loss_")]
            writer = self._open_table(["step", *dict.fromkeys([*row, *losses])])
        writer.writerow({"step": step} | {name: f"{value:.9g}" for name, value in row.items()})
        for name, value in row.items():
            group = "validation" if name.startswith("val_") else "train"
            self._events.add_scalar(f"{group}/{name.removeprefix('val_')}", value, step)

    def flush(self) -> None:
        """Put on disk what has been written so far."""
        self._file.flush()
        self._events.flush()

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()

    def _open_table(self, columns: list[str]) -> "csv.DictWriter[str]":
        self._writer = csv.DictWriter(self._file, columns, restval="", lineterminator="\n")
        self._writer.writeheader()
        return self._writer


def _rows_before(path: Path, step: int) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if int(row["step"]) <= step]
