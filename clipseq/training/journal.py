"""metrics.csv and TensorBoard events: one row per optimizer step, continued on resume."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from clipseq.engine.files import replacing
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
        with (
            replacing(self._path) as partial,
            partial.open("w", newline="", encoding="utf-8") as lines,
        ):
            if self._columns:
                writer = _writer(lines, self._columns)
                writer.writeheader()
                writer.writerows(kept)
        return self._path.open("a", newline="", encoding="utf-8")


def _writer(lines: IO[str], columns: list[str]) -> "csv.DictWriter[str]":
    return csv.DictWriter(lines, columns, restval="", lineterminator="\n")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a metrics.csv.

    A row that a kill or a full disk has cut, or that holds anything but numbers, is left out.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # the last row may have been cut within a number
    rows = csv.DictReader(whole.replace("\0", "?").splitlines())
    return [row for row in rows if _is_whole(row)]


def _is_whole(row: dict[str, str]) -> bool:
    try:
        int(row["step"])
        for value in row.values():
            float(value or 0.0)
    except (KeyError, ValueError, TypeError):
        return False
    return None not in row.values()


def _rows(path: Path, step: int) -> list[dict[str, str]]:
    """Read the rows of the steps up to `step`; what was cut or overwritten is left out."""
    return [row for row in read_rows(path) if int(row["step"]) <= step]
