"""Progress of a long command: a bar on a terminal, or a line in a file for every tenth."""

import sys
import time
from collections.abc import Mapping
from io import TextIOBase
from types import TracebackType
from typing import Any

VALIDATION = ("val_R1", "val_order_accuracy")
"""The validation metrics that are shown with the losses; those of the last validation stay."""

HALF_A_MINUTE = 30.0
"""Longest time, in seconds, that steps take without a line in a file."""


class ProgressBar:
    """A display of steps, losses and the time left; use it as a context manager.

    On a terminal, one line is redrawn. Otherwise (in a file or in CI), a line is written at the
    start, after every tenth of the steps, every half minute, and at the end.

    Args:
        label: text in front of the bar.
        stream: file to write to; standard error by default.
    """

    def __init__(self, label: str, *, stream: TextIOBase | None = None) -> None:
        self.label = label
        self.stream: Any = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._task: Any = None
        self._began = time.monotonic()
        self._first = 0
        self._tenth = -1
        self._validation: dict[str, float] = {}
        self._written = 0.0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` of `steps` steps are done, with the losses and the last validation."""
        self._validation |= {name: metrics[name] for name in VALIDATION if name in metrics}
        if self.stream.isatty():
            self._draw(step, steps, metrics)
        else:
            self._write(step, steps, metrics)

    def _shown(self, metrics: Mapping[str, float]) -> str:
        losses = {name: value for name, value in metrics.items() if name.startswith("loss_")}
        shown = losses | self._validation
        return "  ".join(f"{name} {value:.3f}" for name, value in shown.items())

    def _draw(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[losses]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self.stream),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=steps, losses="")
        self._bar.update(self._task, completed=step, losses=self._shown(metrics))

    def _write(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._tenth < 0:
            self._began, self._first = now, step
        tenth = 10 * step // steps
        if tenth == self._tenth and step < steps and now - self._written < HALF_A_MINUTE:
            return
        self._tenth, self._written = tenth, now
        done = step - self._first
        left = ""
        if done and step < steps:
            each = (now - self._began) / done
            left = f"  {each:.2f} s each, {each * (steps - step):.0f} s left"
        print(
            f"{self.label}: {step}/{steps}  {self._shown(metrics)}{left}".rstrip(),
            file=self.stream,
            flush=True,
        )
