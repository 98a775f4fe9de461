"""Ctrl-C in training: finish the step, leave a checkpoint, say how to go on."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from clipseq.errors import ClipseqError


class TrainingInterrupted(ClipseqError):
    """Ctrl-C: training stopped after a whole optimizer step, and a checkpoint was left."""


class Interruption:
    """Turns the first Ctrl-C into a request; the second one interrupts at once.

    A context manager; a request that nobody met (it came after the last step) is raised as
    KeyboardInterrupt on leaving. Outside the main thread, where no handler can be set, it does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        # lightning turns a KeyboardInterrupt into exit status 1
        if self.requested and kind in (None, SystemExit):
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
