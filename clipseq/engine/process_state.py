"""The state of the process that calls must not change: random numbers, dtype, modes, warnings.

A plugin's module, or a library that training imports, may change any of these at import.
"""

import os
import random
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
    "the deterministic mode": _Part(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms
    ),
    "the environment": _Part(lambda: dict(os.environ), _write_environment),
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
        # torch refuses to read the older setting of the matmul precision beside the newer one.
        with suppress(RuntimeError):
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
            with suppress(RuntimeError):
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
