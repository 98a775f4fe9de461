"""Command lines for messages that name the command to run next."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def command_line(*arguments: object) -> str:
    """Return a clipseq command line with these arguments, which works when it is copied.

    It starts with the program that is running now: ``clipseq`` if that is on the PATH, otherwise
    its path (``.venv/bin/clipseq``), or ``python -m clipseq``.
    """
    return shlex.join([*_program(), *map(str, arguments)])


def _program() -> list[str]:
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return [_callable_name(sys.executable), "-m", "clipseq"]
    if started.stem == "clipseq":
        return [_callable_name(sys.argv[0])]
    return ["clipseq"]  # clipseq runs inside another program


def _callable_name(program: str) -> str:
    """Return the name of a program if the PATH leads to it, otherwise its shortest path."""
    path = Path(program)
    if len(path.parts) == 1:  # the shell found it on the PATH
        return program
    found = shutil.which(path.name)
    if found and os.path.abspath(found) == os.path.abspath(path):
        return path.name
    here = Path.cwd()
    if path.is_relative_to(here):
        path = path.relative_to(here)
    return str(path) if len(path.parts) > 1 else os.path.join(".", path)
