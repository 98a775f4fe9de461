"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def beside(path: Path) -> Path:
    """Return the path beside `path` to which its new content is written first."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, and put what was written there in place of `path`.

    A kill or a power cut at any time leaves the previous content or the new one. An error in the
    block leaves `path` unchanged. The folder of `path` is created if it is missing.

    Args:
        path: a file, or a folder that does not exist yet, whose files are then written by the
            block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        yield partial
        write_through(partial)
        os.replace(partial, path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_through(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk.

    Without that, a power cut could leave a renamed file without its content.
    """
    for written in path.rglob("*") if path.is_dir() else [path]:
        if written.is_file():
            with written.open("rb+") as file:
                os.fsync(file.fileno())
