"""Forward and backward of every similarity, and of its peers, against the matmul floor.

    python -m pytest benchmarks --sizes S1,S2,S3 --benchmark-json benchmarks.json

The floor is three products of 2·B·C·T·L·D operations, forward's and backward's two, timed in turn
with what is measured. With --benchmark-disable everything runs once and nothing is timed.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import PEERS, Scores
from torch import Tensor

import clipseq

SIZES = {
    "S1": (32, 32, 62, 20),
    "S2": (64, 64, 128, 32),
    "S3": (128, 128, 248, 77),
    "M": (512, 512, 62, 20),
}
FEATURES = 256

SIMILARITIES: list[tuple[str, dict[str, Any]]] = [
    ("global", {}),
    ("local", {"window": 1}),
    ("local", {"window": 16}),
    ("attention", {}),
    ("temporal", {}),
    ("temporal", {"band": 0.1}),
    ("combined", {}),
]


def batch(size: str, ragged: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    b, c, t, length = SIZES[size]
    x = torch.randn(b, t, FEATURES, requires_grad=True)
    y = torch.randn(c, length, FEATURES, requires_grad=True)
    # The gradients of the inputs are the caller's, as the inputs are.
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    if not ragged:
        return x, y, None, None
    x_mask = torch.arange(t) < torch.randint(1, t + 1, (b, 1))
    return x, y, x_mask, torch.arange(length) < torch.randint(1, length + 1, (c, 1))


def floor_seconds(size: str) -> float:
    """Of one floor. Its first product, in blocks that fit the memory, thrice."""
    b, c, t, length = SIZES[size]
    rows = min(b * t, 1024)
    x, y = torch.randn(rows, FEATURES), torch.randn(c * length, FEATURES)
    cells = x @ y.T
    start = time.perf_counter()
    torch.mm(x, y.T, out=cells)
    return 3 * (time.perf_counter() - start) * b * t / rows


def peak_bytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(benchmark: Any, what: str, size: str, ragged: bool, run: Callable[[], None]) -> None:
    before = peak_bytes()
    run()
    # A peak is never lower than an earlier one of the process: a lower bound, exact for what is
    # measured first (or alone, with -k).
    added = peak_bytes() - before
    floors: list[float] = []

    def setup() -> None:
        floors.append(floor_seconds(size))

    benchmark.pedantic(run, setup=setup, rounds=5 if size in ("S1", "S2") else 3)
    padding = "ragged" if ragged else "full"
    benchmark.extra_info.update(
        what=what,
        size=size,
        padding=padding,
        floor=statistics.median(floors),
        added_mib=added / 2**20,
        cells=torch.tensor(SIZES[size]).prod().item(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("name", "options"), SIMILARITIES, ids=lambda value: str(value).replace(" ", "")
)
def test_similarity(benchmark, name, options, size, ragged):
    similarity = clipseq.get_similarity(name, **options)
    inputs = batch(size, ragged)
    what = name + "".join(f" {key}={value}" for key, value in options.items())
    measure(benchmark, what, size, ragged, lambda: similarity(*inputs).square().sum().backward())


@pytest.mark.parametrize("peer", PEERS)
def test_peer(benchmark, peer, size):
    if size != "S1":
        pytest.skip("peers hold the whole (B, C, T, L) tensor or loop over pairs: S1 only")
    scores: Scores = PEERS[peer]()
    x, y, _, _ = batch(size, ragged=False)
    measure(benchmark, f"peer of {peer}", size, False, lambda: scores(x, y).sum().backward())
