"""Memory does not grow with the number of pairs."""

from collections.abc import Callable

import torch

from clipseq.testing.conformance import Broken, Check, Subject, tiles_of
from clipseq.testing.strategies import dense

_GROWTH = 2.5
"""Twice the batch on both sides is twice the sequences, and four times the pairs."""


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that `work` holds allocated at one time, beyond what there was before."""
    # The profiler sees the allocator, and so what happens inside custom operators too.
    with torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile:
        work()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


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
        # The scores themselves are four times as many, and may be held a few times over.
        scores = 16 * 4 * (2 * batch) ** 2
        return peak(batch, steps), peak(2 * batch, steps) - scores

    with tiles_of(similarity, 2**15):
        small, large = growth(16, 24)
    if large > _GROWTH * small:
        # Kernels with a tile of their own are bounded too, only later.
        subject.example = {"B = C": (64, 128), "T = L": 16, "D": features}
        small, large = growth(64, 16)
        if large > _GROWTH * small:
            raise Broken(
                f"forward and backward hold {small / 2**20:.1f} MiB at a batch of 64, and "
                f"{large / 2**20:.1f} MiB, {large / small:.1f} times as much, at one of 128"
            )


CHECKS = (
    Check(
        "bounded_memory",
        "twice the batch takes about twice the memory, not four times: pairs are scored in tiles",
        bounded_memory,
        "a `score_all` of your own that scores all pairs at once, or keeps every tile for "
        "backward (recompute: torch.utils.checkpoint)",
    ),
)
