"""Ctrl-C or SIGTERM in training: finish the step, leave a checkpoint, say how to go on."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from clipseq.errors import ClipseqError


class TrainingInterrupted(ClipseqError):
    """Ctrl-C or SIGTERM: training stopped after a whole step, and a checkpoint was left."""


class Interruption:
    """Turns the first Ctrl-C into a request; the second one interrupts at once.

    SIGTERM, which clusters and torchrun send to end a process, is a request however often it
    comes. A context manager; a request that nobody met (it came after the last step) is raised as
    KeyboardInterrupt on leaving. Outside the main thread, where no handler can be set, it does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def insist(self) -> None:
        """Take SIGTERM back from lightning, whose handler, run in the middle of a step, talks to
        the other processes, which are in the middle of something else."""
        if self._previous:
            signal.signal(signal.SIGTERM, self._note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        # lightning turns a KeyboardInterrupt into exit status 1
        if self.requested and kind in (None, SystemExit):
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
