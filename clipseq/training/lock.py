"""The lock of a run folder: one training at a time."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from clipseq.errors import ConfigError
from clipseq.training.folder import RunFolder

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
"""Errors of a file system without locks: the run then goes on without one."""


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of a run folder; the system frees it if the process is killed.

    The folder is created if it is missing. If it is still empty at the end, it is removed.

    Raises:
        ConfigError: another process is training the run.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    missing = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
    file = _open(folder)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while os.fstat(file).st_nlink == 0:  # whoever held it has just removed it
                os.close(file)
                file = _open(folder)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 200).decode(errors="replace").strip() or "another process"
            raise ConfigError(
                f"the run in {folder.root} must be trained by one command at a time, got a second "
                f"one while {owner} trains it; wait until that has ended"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            if {folder.lock}.issuperset(folder.root.iterdir()):
                with contextlib.suppress(OSError):
                    folder.lock.unlink()
                    for path in missing:
                        path.rmdir()
    finally:
        os.close(file)


def _open(folder: RunFolder) -> int:
    folder.root.mkdir(parents=True, exist_ok=True)
    return os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
