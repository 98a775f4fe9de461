"""Signals and faults that end a training: finish the step if possible, say how to continue."""

import errno
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from clipseq.errors import ClipseqError
from clipseq.training.folder import RunFolder

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Ctrl-C; the wish of a cluster or of torchrun to end a process; a terminal that has gone."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_WORKER = re.compile(r"DataLoader worker \(pid")
"""The text of torch if a worker of a data loader is gone."""

_GONE = (
    "a process that loads clips was killed or ended by itself; if memory ran out, lower "
    "training.num_workers"
)

_FROM_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\n.*\n[\w.]+: ", re.DOTALL)
"""The text of torch before an error in a worker: the worker's traceback."""


class TrainingInterrupted(ClipseqError):
    """Training stopped after a signal, at the end of a step, and wrote a checkpoint."""


class TrainingStopped(ClipseqError):
    """Training cannot go on, though the run is sound; the message says why, and how to continue."""


class Interruption:
    """A context in which the first Ctrl-C is a request, and the second one interrupts at once.

    SIGTERM and SIGHUP are always requests. A request that came after the last step, too late to be
    handled, is raised as KeyboardInterrupt on exit. A signal that the process ignores, as under
    nohup, stays ignored. Outside the main thread, where Python cannot set signal handlers, the
    context does nothing.

    Args:
        at_once: raise KeyboardInterrupt for every signal, where there is no step to finish.

    Attributes:
        requested: True once a signal has come.
        reason: why it was requested, if not by a signal.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.requested = False
        self.reason = ""
        self._at_once = at_once
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signum == signal.SIGINT or signal.getsignal(signum) is not signal.SIG_IGN:
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

    def request(self, reason: str) -> None:
        """Ask the run to stop after this step, for a reason that its message will give."""
        self.requested, self.reason = True, f", since {reason}"

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._at_once or (self.requested and signum == signal.SIGINT):
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def naming_the_command(folder: RunFolder) -> Iterator[None]:
    """Turn faults of the machine into one sentence with the command that continues the run.

    Raises:
        TrainingStopped: a file could not be read or written, or a worker is gone.
    """
    try:
        yield
    except ClipseqError as error:
        text = _FROM_WORKER.sub("", str(error), count=1)
        if text != str(error):
            raise type(error)(text) from error
        raise
    except (OSError, EOFError, RuntimeError) as error:
        # A worker may be killed while it sends a batch.
        if isinstance(error, EOFError | ConnectionError) or _WORKER.search(str(error)):
            raise _stopped(_GONE, folder) from error
        if (full := _full_disk(error)) is not None:
            raise _stopped(f"{full}; free some space", folder) from error
        if isinstance(error, OSError) and error.errno is not None:  # otherwise not of the system
            raise _stopped(str(error), folder) from error
        raise


def is_gone(error: Exception) -> bool:
    """Return True for the error of a write to a stream that is closed, or that nobody reads."""
    if isinstance(error, OSError):
        return error.errno in (errno.EPIPE, errno.EIO, errno.EBADF, *_FULL)
    return isinstance(error, ValueError) and "closed file" in str(error)


def _full_disk(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk that `error` is or comes from: torch raises its own then."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _stopped(what: str, folder: RunFolder) -> TrainingStopped:
    if not folder.config.exists():
        return TrainingStopped(f"{what}; then start again: nothing of the run was written yet")
    saved = folder.last.exists() or folder.best.exists()
    how = "continue from the last checkpoint" if saved else "start the run again"
    return TrainingStopped(f"{what}; {how} with: {folder.resume_command}")
