"""Time and memory of every similarity and of its peers, forward and backward.

    python -m pytest benchmarks --sizes S1,S2

Each round times in turn the matmul floor, then the comparison (our similarity for a peer, the parts
for `combined`), and then the contender itself, so that other work on the machine affects all of
them. Memory is that of one more call in a fresh process. With --benchmark-disable everything runs
once, without measurements, and peers run with few sequences.
"""

import datetime
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contenders import CONTENDERS, OURS, PEERS
from memory import measured
from pytest_benchmark.utils import load_timer
from results import Results
from sizes import SIZES, Batch, Size, batch, real_cells

from clipseq.cli.bench import matmul_floor, seconds

ROUNDS = {"S1": 9, "S2": 5}
"""Number of rounds; larger sizes have 3."""


def test_similarity(
    benchmark: Any,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    results: Results,
    label: str,
    size: str,
    padding: str,
) -> None:
    if benchmark.disabled:
        inputs = batch(SIZES[size], padding)
        benchmark.pedantic(lambda: _step(OURS[label].make(), inputs))
        return
    _leave_out_if_there(request, results, label, size, padding)
    threads = request.config.getoption("--threads")
    weighed = measured(label, size, padding, threads, None)
    rounds = ROUNDS.get(size, 3)
    entry = _timed(benchmark, request, label, size, padding, rounds)
    record = {**entry, "added_bytes": weighed["added_bytes"]}
    results.add(record)
    record_property("entry", record)


@pytest.mark.filterwarnings("default")  # peers may warn
def test_peer(
    benchmark: Any,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    results: Results,
    label: str,
    size: str,
    padding: str,
) -> None:
    if not benchmark.disabled:
        _leave_out_if_there(request, results, label, size, padding)
    entry = {"label": label, "size": size, "padding": padding}
    try:
        scores = PEERS[label].make()
    except ImportError as error:
        reason = f"not installed: {error}"
        if not benchmark.disabled:
            results.add({**entry, "skipped": reason})
        pytest.skip(reason)
    _does_the_same_job(label, SIZES[size], padding)
    if benchmark.disabled:
        inputs = batch(SIZES[size]._replace(b=3, c=3), padding)
        benchmark.pedantic(lambda: _step(scores, inputs))
        return
    limits = request.config.getoption("--budget"), request.config.getoption("--peer-memory")
    threads = request.config.getoption("--threads")
    weighed = measured(label, size, padding, threads, limits)
    if "skipped" in weighed:
        results.add({**entry, **weighed})
        pytest.skip(weighed["skipped"])
    rounds = max(1, min(ROUNDS.get(size, 3), int(limits[0] / weighed["seconds"])))
    entry = _timed(benchmark, request, label, size, padding, rounds)
    record = {**entry, "added_bytes": weighed["added_bytes"]}
    results.add(record)
    record_property("entry", record)


def _leave_out_if_there(
    request: pytest.FixtureRequest, results: Results, label: str, size: str, padding: str
) -> None:
    if request.config.getoption("--resume") and results.has(label, size, padding):
        pytest.skip("measured before")


def _does_the_same_job(label: str, size: Size, padding: str) -> None:
    """Check that a peer with `same` gives our scores and gradients."""
    peer = PEERS[label]
    if not peer.same:
        return
    inputs = batch(size._replace(b=3, c=3), padding)
    for found, wanted in zip(
        _scores_and_gradients(peer.make(), inputs),
        _scores_and_gradients(OURS[peer.against or ""].make(), inputs),
        strict=True,
    ):
        tolerance = 1e-3 * float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def _scores_and_gradients(scores: Callable[..., Any], inputs: Batch) -> list[torch.Tensor]:
    found = scores(*inputs)
    gradients = torch.autograd.grad(found.square().sum(), [inputs.x, inputs.y])
    return [found.detach(), *gradients]


def _step(scores: Callable[..., Any], inputs: Batch) -> None:
    scores(*inputs).square().sum().backward()


def _timed(
    benchmark: Any,
    request: pytest.FixtureRequest,
    label: str,
    size: str,
    padding: str,
    rounds: int,
) -> dict[str, Any]:
    contender, inputs = CONTENDERS[label], batch(SIZES[size], padding)
    against = (contender.against,) if contender.against else contender.parts
    references = {other: OURS[other].make() for other in against}
    scores = contender.make()
    floor = matmul_floor(inputs.x.detach().flatten(0, 1), inputs.y.detach().flatten(0, 1))
    # The first call of each is not timed; if it is long, it has few sequences.
    few = batch(SIZES[size]._replace(b=2, c=2), padding)
    warm = inputs if SIZES[size].cells < 2**25 else few
    floor()
    for other in (*references.values(), scores):
        _step(other, warm)
    timer = load_timer(request.config.getoption("benchmark_timer")).target
    floors: list[float] = []
    others: dict[str, list[float]] = {other: [] for other in references}

    def before() -> None:
        floors.append(seconds(floor, timer=timer))
        for other, reference in references.items():
            others[other].append(
                seconds(lambda reference=reference: _step(reference, inputs), timer=timer)
            )

    benchmark.pedantic(lambda: _step(scores, inputs), setup=before, rounds=rounds)
    stats = benchmark.stats.stats
    return {
        "label": label,
        "size": size,
        "padding": padding,
        **SIZES[size]._asdict(),
        "cells": SIZES[size].cells,
        "real_cells": real_cells(inputs),
        "seconds": stats.median,
        "fastest": stats.min,
        "slowest": stats.max,
        "rounds": rounds,
        "floor": statistics.median(floors),
        "references": {other: statistics.median(times) for other, times in others.items()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
