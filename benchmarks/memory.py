"""Memory that a contender adds to a fresh process, forward and backward.

    python benchmarks/memory.py LABEL SIZE PADDING THREADS [SECONDS GIB]

prints {"added_bytes": ..., "seconds": ...} for one call as JSON. With limits, it prints
{"skipped": why} if the call would exceed one of them, as estimated from calls with fewer sequences
of the same lengths.
"""

import ctypes
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from clipseq.cli.bench import added_bytes, seconds

PROBES = (4, 12)
"""Sequences per side in the small calls, from which the cost of the whole size is estimated."""

IN_EVERY_CHILD = 240
"""Seconds allowed for importing, compiling and small calls, on top of the measurement."""


def measured(
    label: str, size: str, padding: str, threads: int, limits: tuple[float, float] | None
) -> dict[str, Any]:
    """Run `main` in a process of its own, and return what it prints.

    Args:
        label: label of a contender.
        size: name of a size.
        padding: "full" or "ragged".
        threads: number of threads of torch.
        limits: seconds and GiB that a call may take; None for no limits.
    """
    arguments = [label, size, padding, str(threads), *map(str, limits or ())]
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__)), *arguments],
            capture_output=True,
            text=True,
            timeout=None if limits is None else 3 * limits[0] + IN_EVERY_CHILD,
        )
    except subprocess.TimeoutExpired as error:
        return {"skipped": f"not done after {error.timeout:.0f} s"}
    if done.returncode < 0 and limits is not None:
        return {"skipped": f"ended by signal {-done.returncode}"}
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from contenders import CONTENDERS
    from sizes import SIZES, Size, batch

    label, size_name, padding, threads, *limits = sys.argv[1:]
    torch.set_num_threads(int(threads))
    size = SIZES[size_name]
    contender = CONTENDERS[label].make()

    def cost(size: Size) -> tuple[float, int | None]:
        inputs = batch(size, padding)
        _give_back()
        took = 0.0

        def run() -> None:
            nonlocal took
            took = seconds(lambda: contender(*inputs).square().sum().backward())

        # `run` sets the time, so it must be called first.
        added = added_bytes(run)
        return took, added

    # Loading and compiling happen at the first call and do not count.
    cost(Size(2, 2, min(size.t, 8), min(size.length, 8)))
    if limits:
        most_seconds, most_gib = map(float, limits)
        few, more = (cost(Size(n, n, size.t, size.length)) for n in PROBES)
        pairs = [n * n for n in PROBES]

        def expected(small: float, large: float) -> float:
            slope = max(0.0, large - small) / (pairs[1] - pairs[0])
            return large + slope * (size.b * size.c - pairs[1])

        time_needed = expected(few[0], more[0])
        if time_needed > most_seconds:
            print(json.dumps({"skipped": f"a call would take about {_about(time_needed)} s"}))
            return
        gib = expected(few[1] or 0, more[1] or 0) / 2**30
        if gib > most_gib:
            print(json.dumps({"skipped": f"a call would take about {_about(gib)} GiB"}))
            return
        # A call whose cost grows faster than the number of pairs fails here, before it fills the
        # memory.
        most = int((most_gib + 4) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        took, added = cost(size)
    except (MemoryError, RuntimeError) as error:
        if not limits or "memory" not in str(error).lower() + type(error).__name__.lower():
            raise
        print(json.dumps({"skipped": f"a call takes more than {most_gib:.0f} GiB"}))
        return
    print(json.dumps({"added_bytes": added, "seconds": took}))


def _about(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _give_back() -> None:
    """Return freed memory to the system, so that it counts when it is allocated again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    main()
