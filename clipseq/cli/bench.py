"""The cost of a similarity: its memory, and its time against the products of all cosines."""

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
    """The cost of a similarity, forward and backward together, as `bench` measured it.

    Attributes:
        similarity: name of the similarity.
        batch: number of sequences on either side, B = C.
        steps: steps of each x, T.
        others: steps of each y, L.
        features: features of each step, D.
        threads: threads that torch used.
        device: device that it ran on.
        dtype: dtype of the sequences, and of the floor's products.
        repeats: number of times that each was timed.
        seconds: median time of the similarity.
        floor_seconds: median time of the floor: three matrix products of 2·B·C·T·L·D operations,
            for the cosines and their gradients to both sides.
        added_bytes: largest amount of memory that the process (on a GPU: torch's allocator) held
            in addition to what it held before, which includes the inputs and their gradients;
            None if unknown.
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
        """Time of the similarity divided by that of the floor."""
        return self.seconds / self.floor_seconds

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as numbers and strings."""
        return {**attrs.asdict(self), "times_floor": self.times_floor}

    def as_text(self) -> str:
        """Return the measurements as lines to read."""
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

    The two are timed in turn, so that other work on the machine affects both alike. The first
    call of each is not timed. The sequences have no padding.

    Args:
        name: name of the similarity.
        batch: number of sequences on either side, B = C.
        steps: steps of each x, T.
        others: steps of each y, L.
        features: features of each step, D.
        threads: number of torch's threads during the measurement; None: the current number.
        device: device to compute on.
        dtype: dtype of the sequences: "float32", "bfloat16", "float16" or "float64".
        repeats: number of times that each is timed.

    Raises:
        UnknownSimilarityError: no similarity has this name.
        ValueError: a size, `threads` or `repeats` is below 1; torch does not know the device or
            cannot compute on it; the dtype is not one of these.
    """
    sizes = {
        "batch": batch,
        "steps": steps,
        "others": others,
        "features": features,
        "repeats": repeats,
        "threads": 1 if threads is None else threads,
    }
    for option, size in sizes.items():
        if size < 1:
            raise ValueError(f"{option} must be positive, got {size}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    _check_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        return _measure(name, batch, steps, others, features, device, dtype, repeats)
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
    # A build of torch without CUDA raises AssertionError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device must be one that torch can compute on, got {device!r} ({reason}); `clipseq "
            "doctor` lists the devices"
        ) from error


def _measure(
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
            # The gradients of the inputs, like the inputs themselves, are not measured.
            side.grad = torch.zeros_like(side)
        return x.requires_grad_(), y.requires_grad_()

    def run(x: Tensor, y: Tensor) -> None:
        similarity(x, y).square().sum().backward()

    # Loading and compiling, which happen at the first call, are not measured.
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
    """Return a function that computes the matmul floor for x (B·T, D) and y (C·L, D).

    It computes the cosines and the gradients to both sides as three matrix products, in blocks of
    rows, because the cosines of a large batch do not fit into memory. The outputs are allocated
    here, once: calling the returned function allocates nothing.
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
    """Return the time that `work` takes, until the device has finished."""
    _synchronize(device)
    start = timer()
    work()
    _synchronize(device)
    return timer() - start


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def added_bytes(work: Callable[[], object], device: str = "cpu") -> int | None:
    """Return the peak growth of the process's memory while `work` runs, in bytes.

    On a GPU, this is the memory of torch's allocator. The result is None if the system does not
    report it (outside Linux, or without permission). If the C library cannot return freed memory to
    the system (glibc can), `work` may reuse that memory, which is not counted: the result is then
    exact in a fresh process, and a lower bound elsewhere.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # Reset the peak to the memory that is resident now.
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
