"""The state of the process that calls must not change: random numbers, dtype, modes, warnings.

A plugin's module, or a library that training imports, may change any of these at import.
"""

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["process_state", "restored"]


class _Part(NamedTuple):
    """One part of the state: how to read it, and how to set it to what was read."""

    read: Callable[[], Any]
    write: Callable[[Any], object]


def _write_environment(wanted: dict[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _write_filters(wanted: list[Any]) -> None:
    warnings.filters[:] = wanted  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _read_flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic


def _write_flags(wanted: tuple[bool, bool, bool]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = wanted


def _read_deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _write_deterministic(wanted: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(wanted[0], warn_only=wanted[1])


# SIGCHLD is missing: torch sets its handler once, for the workers of all later data loaders.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def _write_signals(wanted: dict[int, Any]) -> None:
    for signum, handler in wanted.items():
        # None is a handler that was not set from Python, and cannot be set from there.
        if handler is not None and signal.getsignal(signum) is not handler:
            signal.signal(signum, handler)


def _read_root_logger() -> tuple[int, list[logging.Handler]]:
    return logging.root.level, list(logging.root.handlers)


def _write_root_logger(wanted: tuple[int, list[logging.Handler]]) -> None:
    level, handlers = wanted
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers


def _read_cuda() -> Any:
    # Reading would start CUDA, and a process that has not used it has drawn nothing there.
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None


def _write_cuda(wanted: Any) -> None:
    if wanted is not None:
        torch.cuda.set_rng_state_all(wanted)


RANDOM = {
    "torch's random numbers": _Part(torch.get_rng_state, torch.set_rng_state),
    "CUDA's random numbers": _Part(_read_cuda, _write_cuda),
    "NumPy's random numbers": _Part(np.random.get_state, np.random.set_state),
    "Python's random numbers": _Part(random.getstate, random.setstate),
}
"""The global random generators."""

SETTINGS = {
    "the default dtype": _Part(torch.get_default_dtype, torch.set_default_dtype),
    "the grad mode": _Part(torch.is_grad_enabled, torch.set_grad_enabled),
    "the matmul precision": _Part(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    "torch's threads": _Part(torch.get_num_threads, torch.set_num_threads),
    "the deterministic mode": _Part(_read_deterministic, _write_deterministic),
    "cuDNN's flags": _Part(_read_flags, _write_flags),
    "NumPy's error handling": _Part(np.geterr, lambda wanted: np.seterr(**wanted)),
    "the environment": _Part(lambda: dict(os.environ), _write_environment),
    "the working directory": _Part(os.getcwd, os.chdir),
    "the signal handlers": _Part(
        lambda: {signum: signal.getsignal(signum) for signum in _SIGNALS}, _write_signals
    ),
    "the root logger": _Part(_read_root_logger, _write_root_logger),
    "the exception hook": _Part(
        lambda: sys.excepthook, lambda wanted: setattr(sys, "excepthook", wanted)
    ),
    "the warning filters": _Part(lambda: list(warnings.filters), _write_filters),
}
"""Everything else that a call must not change."""


def process_state(*, randomness: bool = True) -> dict[str, Any]:
    """Return the state of the process by the name of its part.

    Args:
        randomness: whether to include the random generators.
    """
    parts = RANDOM | SETTINGS if randomness else SETTINGS
    state = {}
    for name, part in parts.items():
        # torch refuses to read the older setting of the matmul precision beside the newer one, and
        # a working directory may have been removed.
        with suppress(RuntimeError, OSError):
            state[name] = part.read()
    return state


@contextmanager
def restored(*, randomness: bool = True) -> Iterator[None]:
    """Restore the state of the process after the block, also after an error.

    Args:
        randomness: whether to restore the random generators too.
    """
    before = process_state(randomness=randomness)
    try:
        yield
    finally:
        for name, wanted in before.items():
            part = (RANDOM | SETTINGS)[name]
            # Only the main thread may set signal handlers; others get a ValueError.
            with suppress(RuntimeError, OSError, ValueError):
                if not same(part.read(), wanted):
                    part.write(wanted)


def same(one: Any, other: Any) -> bool:
    """Return True if two readings of a part are equal."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(same(a, b) for a, b in zip(one, other, strict=True))
        )
    return bool(one == other)
