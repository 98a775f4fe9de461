"""Checks that memory does not grow with the number of cells of all pairs."""

from collections.abc import Callable
from itertools import accumulate

import torch

from clipseq.testing.conformance import Broken, Check, Subject, tiles_of
from clipseq.testing.strategies import dense

_GROWTH = 2.5
"""Largest growth of memory when the batch doubles on both sides.

The number of sequences doubles, and the number of pairs becomes four times as large.
"""

_PAIR = 64
"""Largest number of bytes to hold for each pair in addition to a tile: 16 numbers in float32.

Scores and their gradients are such numbers; temporal, the largest built-in, holds 52 bytes.
"""


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that `work` holds allocated at one time, beyond those held before."""
    return max(accumulate(_allocations(work), initial=0))


def allocated_bytes(work: Callable[[], object]) -> int:
    """Return the bytes that `work` allocates in all, those that it frees again included."""
    return sum(size for size in _allocations(work) if size > 0)


def _allocations(work: Callable[[], object]) -> list[int]:
    """Return the sizes of what `work` allocates and, negative, of what it frees, in order."""
    # The profiler sees the allocator, and so what happens inside custom operators too.
    with torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile:
        work()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]


def bounded_memory(subject: Subject) -> None:
    similarity = subject.evaluated(torch.float32)
    features = min(subject.features, 8) if similarity.embed_dim is None else subject.features

    def peak(batch: int, steps: int) -> int:
        x, y = (
            dense(batch, steps, features, seed=seed, dtype=torch.float32).requires_grad_()
            for seed in (1, 2)
        )
        return peak_bytes(lambda: similarity(x, y).sum().backward())

    def growth(batch: int, steps: int) -> tuple[int, int]:
        # There are four times as many scores, and each may hold up to _PAIR bytes.
        return peak(batch, steps), peak(2 * batch, steps) - _PAIR * (2 * batch) ** 2

    def bytes_of_a_pair(batch: int, steps: int) -> float:
        # Eight times the inputs: their gradients, unit vectors and projections grow as they do.
        own = 8 * 4 * 2 * batch * steps * features
        return (peak(2 * batch, steps) - peak(batch, steps) - own) / (3 * batch**2)

    # Kernels with their own tiles are bounded too, but only at larger batches: if the first size
    # exceeds a bound, a larger one is measured.
    with tiles_of(similarity, 2**15):
        small, large = growth(16, 24)
        pair = bytes_of_a_pair(192, 2)
    if large > _GROWTH * small:
        subject.example = {"B = C": (64, 128), "T = L": 16, "D": features}
        small, large = growth(64, 16)
        if large > _GROWTH * small:
            raise Broken(
                f"forward and backward hold {small / 2**20:.1f} MiB at a batch of 64 and "
                f"{large / 2**20:.1f} MiB, {large / small:.1f} times as much, at a batch of 128"
            )
    if pair > _PAIR:
        subject.example = {"B = C": (512, 1024), "T = L": 2, "D": features}
        pair = bytes_of_a_pair(512, 2)
        if pair > _PAIR:
            raise Broken(
                f"forward and backward hold {pair:.0f} bytes for each pair of sequences, beyond "
                f"{_PAIR}"
            )


CHECKS = (
    Check(
        "bounded_memory",
        "twice the batch takes about twice the memory, not four times, as pairs are scored in "
        "tiles; a pair holds little more than its score",
        bounded_memory,
        "a `score_all` of your own that scores all pairs at once, or keeps every tile for "
        "backward; recompute tiles with torch.utils.checkpoint, and keep no numbers of each pair "
        "that backward can compute again",
    ),
)
