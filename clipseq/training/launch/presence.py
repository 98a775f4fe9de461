"""The presence of a run's processes: one file each in the run folder.

``<run>/.processes/rank-3.json`` is locked while the process of rank 3 lives. The kernel releases
the lock when the process ends, in whatever way; a process that leaves because of an error writes
the reason into its file first. So once a collective has failed, a file that is not locked names
the process that is missing, and its content says why.
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
except ImportError:  # Windows: processes that end without a word are not named
    fcntl = None  # type: ignore[assignment]


@attrs.frozen
class Note:
    """The content of a process's file.

    Attributes:
        rank: the process.
        host: the machine that it runs on, or ran on.
        pid: its process id there.
        reason: why it left; "" while it lives, and after an end without a word.
        missing: the ranks without which it could not go on; empty if it left for its own reason.
    """

    rank: int
    host: str
    pid: int
    reason: str = ""
    missing: tuple[int, ...] = ()


class Presence:
    """The file of this process, and a view on those of the others.

    Args:
        folder: the run folder; on a disk that all processes share.
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

        Where files cannot be written or locked, nothing happens, and ends are less well explained.

        Raises:
            ConfigError: another run holds the file for longer than `patience` seconds.
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
        """Unlock the file, and leave the reason in it; without a reason, remove it."""
        path = self._path(self.rank)
        with contextlib.suppress(OSError):
            if reason and path.parent.exists():
                note = attrs.evolve(self.own, reason=reason, missing=tuple(missing))
                # Replaced in one step: nobody reads half of it, nor finds it unlocked and empty.
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
        """Return the notes of the others that left for a reason."""
        others = (self._read(rank) for rank in range(self.size) if rank != self.rank)
        return [note for note in others if note is not None and note.reason]

    def ended(self) -> list[Note]:
        """Return the notes of the others that ended without a word."""
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
    """Remove the files of processes that have ended, in this start of the run or an earlier one.

    For a process without a file of its own: to test a lock of one's own is to release it.
    """
    with contextlib.suppress(OSError):
        for path in folder.processes.iterdir():
            if not _is_locked(path):
                path.unlink(missing_ok=True)
        folder.processes.rmdir()


def _is_locked(path: Path) -> bool:
    """Return True if a process holds the file; also if that cannot be found out."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        # Shared, so that two processes that ask at once do not take each other for the holder.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _content(note: Note) -> bytes:
    return json.dumps(attrs.asdict(note)).encode()
