"""Ctrl-C and SIGTERM in training: finish the step, leave a checkpoint, say how to continue."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from clipseq.errors import ClipseqError


class TrainingInterrupted(ClipseqError):
    """Ctrl-C or SIGTERM: training stopped after a whole step and left a checkpoint."""


class Interruption:
    """A context in which the first Ctrl-C is a request, and the second one interrupts at once.

    SIGTERM, which clusters and torchrun send to end a process, is a request however often it
    comes. A request that nobody answered (it came after the last step) is raised as
    KeyboardInterrupt on leaving. Outside the main thread, where Python sets no handlers, the
    context does nothing.

    Attributes:
        requested: True once a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        if self.requested and kind is None:
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
