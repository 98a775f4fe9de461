"""Ctrl-C and SIGTERM in training: finish the step, write a checkpoint, say how to continue."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from clipseq.errors import ClipseqError


class TrainingInterrupted(ClipseqError):
    """Training stopped after Ctrl-C or SIGTERM, at the end of a step, and wrote a checkpoint."""


class Interruption:
    """A context in which the first Ctrl-C is a request, and the second one interrupts at once.

    SIGTERM, which clusters and torchrun send to end a process, is always a request. A request that
    came after the last step, too late to be handled, is raised as KeyboardInterrupt on exit.
    Outside the main thread, where Python cannot set signal handlers, the context does nothing.

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
