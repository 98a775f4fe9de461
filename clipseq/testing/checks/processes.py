"""A check that two processes, each with a part of a batch, get the results of one process."""

import datetime
import os
import pickle
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from clipseq.sequence_loss import SequenceLoss
from clipseq.sequences import Sequences
from clipseq.similarity import Similarity
from clipseq.testing.conformance import Broken, Check, Subject, check_same
from clipseq.testing.outcome import parameter_gradients, rows
from clipseq.testing.strategies import dense

_GATHERS: tuple[Literal["ring", "all"], ...] = ("ring", "all")
_HALVES = (slice(0, 2), slice(2, 5))
_SECONDS = 60


def two_processes(subject: Subject) -> None:
    if not hasattr(os, "fork"):
        # Only a forked process is sure to have a class that was written in a notebook or a test.
        warnings.warn("skipped the check 'two_processes', which needs os.fork", stacklevel=2)
        return
    similarity = subject.trained()
    x_mask = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]])
    y_mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    x, y = (
        Sequences.from_tensor(dense(*mask.shape, subject.features, seed=seed), mask.bool())
        for seed, mask in ((1, x_mask), (2, y_mask))
    )
    subject.example = {"x": x, "y": y, "items of each process": (2, 3)}
    wanted = _loss(similarity, x, y, gather=None)
    halves = [(_trimmed(rows(x, half)), _trimmed(rows(y, half))) for half in _HALVES]
    with tempfile.TemporaryDirectory() as folder:
        found = _forked(similarity, halves, Path(folder))
    for gather in _GATHERS:
        _compare([results[gather] for results in found], wanted, f" ({gather=})")


def _compare(found: list[dict[str, Any]], wanted: dict[str, Any], how: str) -> None:
    where = "in one process"
    for half, mine in zip(_HALVES, found, strict=True):
        check_same(mine["loss"], wanted["loss"], 1e-10, f"the loss of two processes{how}", where)
        for side in "xy":
            # Gradients are averaged over processes, so each holds twice its share.
            own, whole = mine[side] / 2, wanted[side][half]
            what = f"the gradient of {side}{how}"
            check_same(own, whole[:, : own.shape[1]], 1e-8, what, where)
    for name, gradient in wanted["parameters"].items():
        mean = (found[0]["parameters"][name] + found[1]["parameters"][name]) / 2
        check_same(mean, gradient, 1e-8, f"the gradient of the parameter {name}{how}", where)


def _loss(similarity: Similarity, x: Sequences, y: Sequences, gather: Any) -> dict[str, Any]:
    similarity.zero_grad()
    loss = SequenceLoss(similarity, init_scale=5.0, gather=gather).to(x.values.dtype)
    xs, ys = (side.values.clone().requires_grad_() for side in (x, y))
    value = loss(xs, ys, x.mask, y.mask)
    value.backward()
    gradients = parameter_gradients(similarity)
    return {"loss": value.detach(), "x": xs.grad, "y": ys.grad, "parameters": gradients}


def _trimmed(sequences: Sequences) -> Sequences:
    """Cut the batch to its longest sequence: each process pads its own batch."""
    real = sequences.mask.any(0).nonzero()
    steps = int(real.max()) + 1
    return Sequences(sequences.values[:, :steps], sequences.mask[:, :steps])


def _forked(
    similarity: Similarity, halves: list[tuple[Sequences, Sequences]], folder: Path
) -> list[dict[str, Any]]:
    """Return the results of two forked processes."""
    children = []
    try:
        for rank, (x, y) in enumerate(halves):
            with warnings.catch_warnings():
                # Threads of this process are missing in the child, which does not use them.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                _be_rank(similarity, x, y, rank, folder)
            children.append(child)
        return _collected(children, folder)
    finally:
        for child in children:
            _end(child)


def _be_rank(similarity: Similarity, x: Sequences, y: Sequences, rank: int, folder: Path) -> None:
    """Run as a forked process, and never return."""
    result: dict[str, Any] = {}
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=rank,
            world_size=len(_HALVES),
            timeout=datetime.timedelta(seconds=_SECONDS),
        )
        result = {gather: _loss(similarity, x, y, gather=gather) for gather in _GATHERS}
    except BaseException as error:
        lines = traceback.format_exception_only(error)
        result = {"error": f"process {rank} raised {''.join(lines).strip()}"}
    finally:
        partial = folder / f"{rank}.partial"
        partial.write_bytes(pickle.dumps(result))
        partial.rename(folder / f"{rank}.pkl")
        # Exit handlers of the parent, such as those of pytest or coverage, must not run here.
        os._exit(0)


def _collected(children: list[int], folder: Path) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 2 * _SECONDS
    paths = [folder / f"{rank}.pkl" for rank in range(len(children))]
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            raise Broken(f"two processes must find a loss within {2 * _SECONDS} s, but found none")
        time.sleep(0.01)
    found = [pickle.loads(path.read_bytes()) for path in paths]
    errors = [result["error"] for result in found if "error" in result]
    if errors:
        raise Broken("; ".join(errors))
    return found


def _end(child: int) -> None:
    # The child has written its result, or is too late: nothing is lost.
    try:
        os.kill(child, 9)
    except ProcessLookupError:
        return
    os.waitpid(child, 0)


CHECKS = (
    Check(
        "two_processes",
        "two processes with a part of the batch each find the loss and gradients of one process",
        two_processes,
        "attributes that `prepare_y` sets and `score` or `score_all` reads: the y of another "
        "process arrives as the tree that `prepare_y` returned there, without them",
    ),
)
