"""What a similarity costs: its memory, and its time beside the products of all cosines."""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from clipseq.registry import get_similarity


@attrs.frozen
class Benchmark:
    """What `bench` measured, forward and backward together.

    Attributes:
        similarity: its name.
        batch: B = C.
        steps: T.
        others: L.
        features: D.
        threads: of torch.
        device: that it ran on.
        dtype: of the sequences, and of the floor's products.
        repeats: how many times each was timed.
        seconds: median of the similarity's times.
        floor_seconds: median of the floor's: three matrix products of 2·B·C·T·L·D operations, the
            cosines and their gradients to both sides.
        added_bytes: the most that the process (on a GPU: torch's allocator) held beyond what it
            held before, inputs and their gradients not counted; None where that is not known.
    """

    similarity: str
    batch: int
    steps: int
    others: int
    features: int
    threads: int
    device: str
    dtype: str
    repeats: int
    seconds: float
    floor_seconds: float
    added_bytes: int | None

    @property
    def times_floor(self) -> float:
        """Time of the similarity over that of the floor."""
        return self.seconds / self.floor_seconds

    def to_json(self) -> dict[str, Any]:
        """As numbers and strings."""
        return {**attrs.asdict(self), "times_floor": self.times_floor}

    def as_text(self) -> str:
        """For a person to read."""
        memory = "unknown" if self.added_bytes is None else f"{self.added_bytes / 2**20:.0f} MiB"
        return (
            f"{self.similarity}: B=C={self.batch} T={self.steps} L={self.others} "
            f"D={self.features}, {self.dtype}, {self.device}, {self.threads} threads, "
            f"medians of {self.repeats}\n"
            f"  forward + backward  {1e3 * self.seconds:9.1f} ms\n"
            f"  matmul floor        {1e3 * self.floor_seconds:9.1f} ms\n"
            f"  times the floor     {self.times_floor:9.2f}\n"
            f"  memory added        {memory:>9}\n"
        )


def bench(
    name: str,
    *,
    batch: int = 32,
    steps: int = 62,
    others: int = 20,
    features: int = 256,
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    repeats: int = 5,
) -> Benchmark:
    """Time a registered similarity, with its default options, against the matmul floor.

    The two are timed in turn, so that what else the machine does meets both. The first call of
    each is not timed. Sequences are without padding.

    Args:
        name: of the similarity.
        batch: B = C.
        steps: T.
        others: L.
        features: D.
        threads: for torch while this runs; None: as they are.
        device: to compute on.
        dtype: of the sequences, one of "float32", "bfloat16", "float16" and "float64".
        repeats: how many times each is timed.

    Raises:
        UnknownSimilarityError: no such name.
        ValueError: a size, `threads` or `repeats` below 1; no such device or dtype.
    """
    sizes = {
        "batch": batch,
        "steps": steps,
        "others": others,
        "features": features,
        "repeats": repeats,
        "threads": 1 if threads is None else threads,
    }
    for what, size in sizes.items():
        if size < 1:
            raise ValueError(f"{what} must be positive, got {size}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    _check_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        return _measured(name, batch, steps, others, features, device, dtype, repeats)
    finally:
        torch.set_num_threads(before)


_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).tolist()
    # Torch without CUDA fails an assertion.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"cannot compute on the device {device!r}: {reason}; `clipseq doctor` lists those "
            "that torch sees"
        ) from error


def _measured(
    name: str,
    batch: int,
    steps: int,
    others: int,
    features: int,
    device: str,
    dtype: str,
    repeats: int,
) -> Benchmark:
    similarity = get_similarity(name).to(device)
    generator = torch.Generator().manual_seed(0)

    def inputs(batch: int, steps: int, others: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, steps, features, generator=generator).to(device, _DTYPES[dtype])
        y = torch.randn(batch, others, features, generator=generator).to(device, _DTYPES[dtype])
        for side in (x, y):
            # The gradients of the inputs are the caller's, as the inputs are.
            side.grad = torch.zeros_like(side)
        return x.requires_grad_(), y.requires_grad_()

    def run(x: Tensor, y: Tensor) -> None:
        similarity(x, y).square().sum().backward()

    # What is loaded or compiled at the first call is not the similarity's.
    run(*inputs(2, min(steps, 8), min(others, 8)))
    x, y = inputs(batch, steps, others)
    added = added_bytes(lambda: run(x, y), device)
    floor = matmul_floor(x.detach().flatten(0, 1), y.detach().flatten(0, 1))
    floor()
    times: list[float] = []
    floors: list[float] = []
    for _ in range(repeats):
        floors.append(seconds(floor, device))
        times.append(seconds(lambda: run(x, y), device))
    return Benchmark(
        similarity=name,
        batch=batch,
        steps=steps,
        others=others,
        features=features,
        threads=torch.get_num_threads(),
        device=device,
        dtype=dtype,
        repeats=repeats,
        seconds=statistics.median(times),
        floor_seconds=statistics.median(floors),
        added_bytes=added,
    )


_FLOOR_CELLS = 2**24


def matmul_floor(x: Tensor, y: Tensor) -> Callable[[], None]:
    """The cosines of (B·T, D) and (C·L, D), and the gradients to both, as three products.

    In blocks of rows, as the cosines of a large batch do not fit the memory. What it writes to is
    taken here, once: calling what this returns takes no memory.
    """
    rows = max(1, _FLOOR_CELLS // len(y))
    cosines = x.new_empty(min(rows, len(x)), len(y))
    grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)

    def floor() -> None:
        for start in range(0, len(x), rows):
            block = x[start : start + rows]
            cells = cosines[: len(block)]
            torch.mm(block, y.T, out=cells)
            torch.mm(cells, y, out=grad_x[start : start + rows])
            if start == 0:
                torch.mm(cells.T, block, out=grad_y)
            else:
                grad_y.addmm_(cells.T, block)

    return floor


def seconds(
    work: Callable[[], object],
    device: str = "cpu",
    timer: Callable[[], float] = time.perf_counter,
) -> float:
    """How long `work` takes by the timer, until the device has finished."""
    _finish(device)
    start = timer()
    work()
    _finish(device)
    return timer() - start


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def added_bytes(work: Callable[[], object], device: str = "cpu") -> int | None:
    """The most that the process (on a GPU: torch's allocator) held during `work` beyond before.

    None where that is not known (no Linux, or one that does not let us). Where the C library cannot
    give freed memory back (glibc can), it may be used again unseen: exact in a fresh process, a
    lower bound elsewhere.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # Makes the peak what is resident now: it may lie far back.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        work()
        return None
    before = _peak_resident_bytes()
    work()
    return max(0, _peak_resident_bytes() - before)


def _peak_resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")
