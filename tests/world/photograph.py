"""A context manager that photographs the process before and after a block, and compares.

It reads everything itself: `clipseq.engine.process_state` is code under test.
"""

import contextlib
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

# These appear when a library is imported or first used, which nobody can undo.
LIBRARY_THREADS = ("LanceDBBackgroundEventLoop", "tqdm_monitor")
LIBRARY_FILES = ("anon_inode:", "socket:", "/mpl-data/fonts/")  # LanceDB's loop, matplotlib's fonts


@contextlib.contextmanager
def same_world(*models: nn.Module) -> Iterator[None]:
    """Raise AssertionError if the block changes the state of the process or of `models`.

    An error of the block is passed on if nothing has changed.
    """
    before = photograph(*models)
    try:
        yield
    finally:
        changes = compare(before, photograph(*models))
        assert not changes, changes


def photograph(*models: nn.Module) -> dict[str, Any]:
    """Return the state of the process and the modes of the models' modules, by name."""
    gc.collect()  # an iterator in a cycle still holds its pipes
    umask = os.umask(0)
    os.umask(umask)
    cudnn = torch.backends.cudnn
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":  # of a data worker that has just been ended
            thread.join(5)
    return {
        "torch's random numbers": torch.get_rng_state().tolist(),
        "NumPy's random numbers": repr(list(np.random.get_state())),  # noqa: NPY002
        "Python's random numbers": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cuDNN": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "sharing strategy": torch.multiprocessing.get_sharing_strategy(),
        "process group": torch.distributed.is_initialized(),
        "NumPy's settings": (np.geterr(), str(np.get_printoptions())),
        "torch's print options": str(vars(torch._tensor_str.PRINT_OPTS)),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "umask": umask,
        "import path": list(sys.path),
        "arguments": list(sys.argv),
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "tracing": (sys.gettrace(), sys.getprofile()),
        "recursion limit": sys.getrecursionlimit(),
        "digits of integers": sys.get_int_max_str_digits(),
        "locale": locale.setlocale(locale.LC_ALL),
        "warning filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        # torch sets the handler of SIGCHLD once, for all data loaders.
        "signal handlers": {
            signum: signal.getsignal(signum)
            for signum in signal.valid_signals() - {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP}
        },
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "logging": (logging.root.manager.disable, logging.getLoggerClass()),
        "levels of loggers": {
            name: (logger.level, logger.disabled, logger.propagate)
            for name, logger in logging.root.manager.loggerDict.items()
            if isinstance(logger, logging.Logger)
        },
        "threads": sorted(
            thread.name for thread in threading.enumerate() if thread.name not in LIBRARY_THREADS
        ),
        "child processes": [child.pid for child in multiprocessing.active_children()],
        "open files": sorted(_open_files()),
        "modes": [module.training for model in models for module in model.modules()],
        "gradients wanted": [p.requires_grad for model in models for p in model.parameters()],
    }


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for each difference between two photographs."""
    lines = []
    for name, was in before.items():
        now = after[name]
        if name == "levels of loggers":  # a library that is imported brings its own
            now = {logger: level for logger, level in now.items() if logger in was}
        if was != now:
            lines.append(f"{name}: {_shown(was, now)} became {_shown(now, was)}")
    return lines


def _open_files() -> Iterator[str]:
    folder = "/proc/self/fd"
    for number in os.listdir(folder) if os.path.isdir(folder) else []:
        with contextlib.suppress(OSError):  # the listing itself is closed by now
            target = os.readlink(f"{folder}/{number}")
            if not any(part in target for part in LIBRARY_FILES):
                yield target


def _shown(value: Any, other: Any) -> str:
    """Return what `value` has and `other` has not."""
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if other.get(key) != part}
    elif isinstance(value, list) and isinstance(other, list) and len(value) < 1000:
        value = list((Counter(map(str, value)) - Counter(map(str, other))).elements())
    return str(value)[:500]
