"""The presence of a run's processes: one file each in the run folder.

``<run>/.processes/rank-3.json`` is locked while the process of rank 3 is alive. The kernel releases
the lock when the process ends for any reason; a process that stops because of an error writes the
reason into its file first. So after a collective has failed, an unlocked file identifies the
missing process, and its content gives the reason.
"""

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import attrs

from clipseq.errors import ConfigError
from clipseq.training.folder import RunFolder

try:
    import fcntl
except ImportError:  # on Windows, processes that end without a reason are not reported
    fcntl = None  # type: ignore[assignment]


@attrs.frozen
class Note:
    """The content of a process's file.

    Attributes:
        rank: the rank of the process.
        host: the machine that it runs on, or ran on.
        pid: its process id there.
        reason: the reason why it stopped; "" while it is alive, and if it ended without one.
        missing: the missing ranks that made it stop; empty if it stopped because of its own error.
    """

    rank: int
    host: str
    pid: int
    reason: str = ""
    missing: tuple[int, ...] = ()


class Presence:
    """The file of this process, and access to those of the others.

    Args:
        folder: the run folder, on a disk that all processes share.
        rank: rank of this process.
        size: number of processes.
    """

    def __init__(self, folder: RunFolder, rank: int, size: int) -> None:
        self.folder = folder
        self.rank = rank
        self.size = size
        self.own = Note(rank, socket.gethostname(), os.getpid())
        self._is_new = not folder.root.exists()
        self._descriptor: int | None = None

    def enter(self, patience: float = 10.0) -> None:
        """Create and lock the file of this process.

        If files cannot be written or locked, this does nothing, and errors explain less.

        Raises:
            ConfigError: another run keeps the file locked for longer than `patience` seconds.
        """
        if fcntl is None:
            return
        path = self._path(self.rank)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        until = time.monotonic() + patience
        while self._descriptor is not None:
            try:
                # Not flock, which the workers of a DataLoader would inherit.
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, _content(self.own))
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    other = self._read(self.rank) or Note(self.rank, "this machine", 0)
                    raise ConfigError(
                        f"training.out must not be in use by another run, got {self.folder.root}, "
                        f"in which process {other.pid} on {other.host} trains; wait for it, or "
                        "end it"
                    ) from None
                time.sleep(0.1)
            except OSError:  # this disk has no locks
                return

    def leave(self, reason: str = "", missing: tuple[int, ...] = ()) -> None:
        """Write the reason into the file and unlock it; without a reason, remove the file."""
        path = self._path(self.rank)
        with contextlib.suppress(OSError):
            if reason and path.parent.exists():
                note = attrs.evolve(self.own, reason=reason, missing=tuple(missing))
                # Replaced atomically, so that no process reads a partial file.
                partial = path.with_suffix(".partial")
                partial.write_bytes(_content(note))
                os.replace(partial, path)
            elif not reason:
                path.unlink()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if not reason:
            remove_notes(self.folder)
            if self._is_new:
                with contextlib.suppress(OSError):
                    self.folder.root.rmdir()  # if there is nothing else in it

    def notes(self) -> list[Note]:
        """Return the notes of other processes that stopped with a reason."""
        others = (self._read(rank) for rank in range(self.size) if rank != self.rank)
        return [note for note in others if note is not None and note.reason]

    def ended(self) -> list[Note]:
        """Return the notes of other processes that ended without giving a reason."""
        found = []
        for rank in range(self.size):
            if rank != self.rank and not _is_locked(self._path(rank)):
                note = self._read(rank)
                if note is not None and not note.reason:
                    found.append(note)
        return found

    def _read(self, rank: int) -> Note | None:
        try:
            found: dict[str, Any] = json.loads(self._path(rank).read_bytes())
            return Note(**found | {"missing": tuple(found["missing"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _path(self, rank: int) -> Path:
        return self.folder.processes / f"rank-{rank}.json"


def remove_notes(folder: RunFolder) -> None:
    """Remove the files of processes that have ended, including those of earlier starts of the run.

    Do not call this in a process that holds a lock: testing its own lock would release it.
    """
    with contextlib.suppress(OSError):
        for path in folder.processes.iterdir():
            if not _is_locked(path):
                path.unlink(missing_ok=True)
        folder.processes.rmdir()


def _is_locked(path: Path) -> bool:
    """Return True if a process holds a lock on the file, or if this cannot be determined."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        # A shared lock, so that two processes that test at once do not find each other's lock.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _content(note: Note) -> bytes:
    return json.dumps(attrs.asdict(note)).encode()
