"""The errors and warnings of clipseq, and suggestions for mistyped names."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

Init = TypeVar("Init", bound=Callable[..., None])


class ClipseqError(Exception):
    """The base class of clipseq's errors. An invalid argument raises ValueError or TypeError."""


class UnknownSimilarityError(ClipseqError, LookupError):
    """No similarity of that name is registered."""


class UnknownLossError(ClipseqError, LookupError):
    """No loss of that name is registered."""


class PluginError(ClipseqError):
    """A plugin breaks a rule of the registry: a clash of names, a bad name, a wrong class."""


class PluginWarning(UserWarning):
    """A plugin could not be loaded; everything else works without it."""


class ConfigError(ClipseqError, ValueError):
    """A configuration holds an unknown key or a value of the wrong type."""


class DataError(ClipseqError, ValueError):
    """A data set is incomplete, corrupt or inconsistent."""


class CheckpointError(ClipseqError, RuntimeError):
    """A saved model is incomplete, corrupt, or does not fit what is installed."""


class Origin(NamedTuple):
    """The process that an error comes from, in a run of several processes.

    Attributes:
        rank: the rank of that process.
        here: True if it is this process.
    """

    rank: int
    here: bool


def set_origin(error: BaseException, rank: int, *, here: bool) -> None:
    """Record on `error` the process that it comes from, unless one is recorded already."""
    if get_origin(error) is None:
        error.__dict__["_origin"] = Origin(rank, here)


def get_origin(error: BaseException) -> Origin | None:
    """Return the process that `error` comes from, or None in a run of one process."""
    return error.__dict__.get("_origin")


def find_closest(word: object, choices: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the choice most like `word`, or None if no choice is close or it is no string."""
    if not isinstance(word, str):
        return None
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return close[0] if close else None


def suggest(word: object, choices: Iterable[str]) -> str:
    """Return ``": did you mean 'x'?"`` for the choice most like `word`, or ``""``."""
    close = find_closest(word, choices)
    return "" if close is None else f": did you mean {close!r}?"


def end_clause(hint: str) -> str:
    """Return `hint` with a semicolon behind it, unless it ends with a question mark."""
    return hint if hint.endswith("?") else f"{hint};"


def names_options(hints: Mapping[str, str] | None = None) -> Callable[[Init], Init]:
    """Make the error of an ``__init__`` for an unknown option suggest the nearest.

    Args:
        hints: text that follows the error, by the name of an option that users may expect.
    """

    def decorate(init: Init) -> Init:
        known = list(inspect.signature(init).parameters)[1:]

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **options: Any) -> None:
            for option in options:
                if option not in known:
                    hint = (hints or {}).get(option) or suggest(option, known)
                    raise TypeError(
                        f"{type(self).__name__} has no option {option!r}{end_clause(hint)} "
                        f"options: {', '.join(known)}"
                    )
            init(self, *args, **options)

        return cast(Init, checked)

    return decorate
