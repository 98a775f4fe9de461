"""JSON on standard output, and nothing else there: what plugins print goes to standard error."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_outputs: list[TextIO] = []


@contextmanager
def json_alone() -> Iterator[None]:
    """Send everything that is printed inside the block to standard error, except `print_json`."""
    _outputs.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _outputs.pop()


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=2), file=_outputs[-1] if _outputs else sys.stdout)
