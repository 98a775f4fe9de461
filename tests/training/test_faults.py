"""A kill before any file operation of a run leaves a folder from which the run ends as it would.

Each run is a forked process. Python's audit events announce the files that it will touch. By
default, some operations of each kind are tried; with CLIPSEQ_ALL_FAULTS=1 all of them, which takes
minutes.
"""

import os
import sys
import traceback
import warnings
from pathlib import Path

import pytest

from clipseq.data import simulate
from clipseq.training import RunFolder, read_config, train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

KILLED, FAILED = 77, 78
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def operation(event, arguments, root):
    """Return the file operation that an audit event announces below `root`, or None."""
    if event != "open" and event not in CHANGES:
        return None
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike) or root not in os.fsdecode(path):
        return None
    if event == "open" and not arguments[2] & WRITES:
        return None
    return event, Path(os.fsdecode(path))


def in_a_process(work, hook=None):
    """Run `work()` in a forked process; return its exit status and what it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = FAILED
        try:
            os.close(reading)
            report = lambda text: os.write(writing, f"{text}\n".encode())  # noqa: E731
            if hook is not None:
                sys.addaudithook(lambda event, arguments: hook(event, arguments, report))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as lines:
        told = lines.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def killer(root, at, *, cut):
    """Return an audit hook that kills the process before operation `at`.

    Args:
        root: part of the paths that count.
        at: number of the operation, from 0.
        cut: cut a file that is about to be renamed to half of its length first, as if the process
            had been killed while writing it.
    """
    done = 0

    def hook(event, arguments, report):
        nonlocal done
        found = operation(event, arguments, root)
        if found is None:
            return
        if done == at:
            if cut and event == "os.rename" and found[1].is_file():
                os.truncate(found[1], found[1].stat().st_size // 2)
            os._exit(KILLED)
        done += 1

    return hook


def chosen(operations):
    """Return numbers and names of the operations to try."""
    numbered = list(enumerate(operations))
    if os.environ.get("CLIPSEQ_ALL_FAULTS"):
        return numbered
    renamed = [pair for pair in numbered if pair[1].startswith("os.rename")]
    first = {name: (at, name) for at, name in reversed(renamed)}
    others = [pair for pair in numbered if pair not in renamed]
    return sorted([*first.values(), *others[:: len(others) // 4]])


def outcome(config):
    """Return the losses of each step and the weights of a finished run."""
    folder = RunFolder(config.training.out)
    header, *rows = folder.metrics.read_text().splitlines()
    seconds = header.split(",").index("seconds")
    losses = [[cell for k, cell in enumerate(row.split(",")) if k != seconds] for row in rows]
    weights = [
        (path / "model.safetensors").read_bytes() for path in (folder.model, folder.model_last)
    ]
    return header, losses, weights


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    shares = {"train": 0.6, "val": 0.4}
    return simulate(
        tmp_path_factory.mktemp("clips") / "data", clips=10, seconds=5.0, split_shares=shares
    )


def test_a_kill_before_any_file_operation_loses_nothing(clips, small_run_in, tmp_path):
    def run_in(name):
        return small_run_in(tmp_path / name, max_steps=2, batch_size=4, checkpoint_every=1)

    train(run_in("first"), dataset=clips)  # what this imports, the forked processes need not
    whole = run_in("whole")

    def note(event, arguments, report):
        if (found := operation(event, arguments, str(tmp_path))) is not None:
            report(f"{found[0]} {found[1].relative_to(tmp_path / 'whole')}")

    status, told = in_a_process(lambda: train(whole, dataset=clips), note)
    assert status == 0, told
    operations = told.splitlines()
    assert len(operations) > 30
    expected = outcome(whole)
    assert any(name == "os.rename run/config.toml.partial" for name in operations)
    failures = []
    for at, name in chosen(operations):
        for cut in (False, True) if name.startswith("os.rename") else (False,):
            config = run_in(f"{at}-{cut}")
            folder = RunFolder(config.training.out)
            status, told = in_a_process(
                lambda c=config: train(c, dataset=clips), killer(str(tmp_path), at, cut=cut)
            )
            assert status == KILLED, told

            def again(config=config, folder=folder):
                if folder.config.exists():
                    train(read_config(folder.config), dataset=clips, resume=True)
                else:
                    train(config, dataset=clips)

            status, told = in_a_process(again)
            if status or outcome(config) != expected:
                failures.append(f"{at} {name} cut={cut}: {told.strip().splitlines()[-1:]}")
    assert not failures, "\n".join(failures)
