"""Errors and warnings on the command line: one line on standard error, and an exit status.

====== ==========================================================================================
status meaning
====== ==========================================================================================
0      The command succeeded.
1      The command failed while it ran.
2      The request is wrong: arguments, configuration, data, or a folder that is in use already.
130    The command was interrupted with Ctrl-C.
====== ==========================================================================================
"""

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import typer

from clipseq.cli.json_output import json_alone
from clipseq.errors import (
    ClipseqError,
    ConfigError,
    DataError,
    UnknownLossError,
    UnknownSimilarityError,
    get_origin,
)

FAILED, WRONG_REQUEST = 1, 2
INTERRUPTED = 130  # 128 + SIGINT, the status that a shell reports


def report_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command print its errors as one line and exit with a status.

    ``clipseq --debug ...`` prints the traceback too. Any other exception is a defect of clipseq
    and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> None:
        try:
            with json_alone() if options.get("as_json") else nullcontext():
                command(*args, **options)
        except KeyboardInterrupt as error:
            error.args = ("interrupted",)
            raise _exit(error, INTERRUPTED) from None
        except BrokenPipeError:  # click ends quietly if the reader of standard output has gone
            raise
        except (ConfigError, DataError, UnknownLossError, UnknownSimilarityError) as error:
            raise _exit(error, WRONG_REQUEST) from error
        except ClipseqError as error:
            from clipseq.training.launch.interruption import TrainingInterrupted

            status = INTERRUPTED if isinstance(error, TrainingInterrupted) else FAILED
            raise _exit(error, status) from error
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise _exit(error, WRONG_REQUEST) from error

    return wrapper


def _exit(error: BaseException, status: int) -> typer.Exit:
    if "--debug" in sys.argv[1:]:
        traceback.print_exc()
    place = get_origin(error)
    if place is None or place.here:  # otherwise another process reports it
        rank = f"rank {place.rank}: " if place is not None and place.rank else ""
        # A single write, because several processes may report at the same time.
        line = f"clipseq: {rank}{str(error) or type(error).__name__}\n"
        for stream in (sys.stderr, sys.stdout):  # the reader of the first may have gone
            with suppress(OSError, ValueError):
                stream.write(line)
                stream.flush()
                break
    return typer.Exit(status)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print every warning as one line, without its location in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"clipseq: warning: {message}", file=sys.stderr)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Replace standard streams that are closed, and let none fail when Python ends."""
    absent = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    with ExitStack() as opened:
        for name in absent:
            setattr(sys, name, opened.enter_context(open(os.devnull, "w", encoding="utf-8")))
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    _discard(stream)
            for name in absent:
                setattr(sys, name, None)


def _discard(stream: Any) -> None:
    """Send what a stream still holds to nowhere: its reader has gone."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
