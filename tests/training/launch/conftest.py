"""Real processes that start at once: forks of a process that has imported everything already."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

PATIENCE = 150
"""Seconds after which a test gives up on a process; a busy machine is slow."""

PRELOADED = [
    "clipseq.cli",
    "clipseq.training.loop",
    "clipseq.training.journal",
    "lightning.fabric",
    "torch.utils.tensorboard",
]

CHILD = """
import os, sys
os.environ.update(environment)
os.setsid()
os.dup2(os.open(path, os.O_WRONLY), 2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
import torch
torch.set_num_threads(1)
exec(code, {"__name__": "__main__"})
"""


class Started:
    """A process, and the file with its standard error."""

    def __init__(self, process, path: Path):
        self.process = process
        self.path = path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll() is None
        return self.process.is_alive()

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def printed(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace")

    def ended(self) -> tuple[int, str]:
        """Return exit status and standard error."""
        if isinstance(self.process, subprocess.Popen):
            status = self.process.wait(PATIENCE)
        else:
            self.process.join(PATIENCE)
            status = self.process.exitcode
            if status is None:
                pytest.fail(f"the process has not ended in {PATIENCE} s: {self.printed()}")
        return status, self.printed()

    def wait_for_step(self, step: int) -> None:
        """Wait until it has printed progress of at least that many steps."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            alive = self.is_alive
            steps = re.findall(r"^training: (\d+)/", self.printed(), re.MULTILINE)
            if steps and int(steps[-1]) >= step:
                return
            if not alive:
                pytest.fail(f"the process ended before step {step}: {self.printed()}")
            time.sleep(0.02)
        pytest.fail(f"the process did not reach step {step}: {self.printed()}")


@pytest.fixture(scope="module")
def warm():
    """A context of processes in which the modules are imported already."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture
def started(tmp_path):
    """All processes of the test, which do not outlive it."""
    processes: list[Started] = []
    yield processes
    for process in processes:
        if process.is_alive:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def fork(warm, started, tmp_path):
    """`fork(code, RANK=...)`: a process that runs the Python code, with that environment."""

    def run(code: str, **environment: str) -> Started:
        path = tmp_path / f"process{len(started)}.txt"
        path.touch()
        names = {"environment": environment, "path": str(path), "code": code}
        process = warm.Process(target=exec, args=(CHILD, names))
        process.start()
        started.append(Started(process, path))
        return started[-1]

    return run


@pytest.fixture
def start(started, tmp_path):
    """`start([...])`: the process of a command."""

    def run(command) -> Started:
        path = tmp_path / f"process{len(started)}.txt"
        with path.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        started.append(Started(process, path))
        return started[-1]

    return run


TRAIN = """
import sys
{before}
sys.argv = ["clipseq", *{arguments!r}]
from clipseq.cli.app import run
run()
"""


@pytest.fixture
def start_ranks(fork):
    """`start_ranks(3, ["train", path])`: a process for each rank, as a launcher starts them."""

    def run(size: int, arguments, before: str = "") -> list[Started]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        code = TRAIN.format(before=before, arguments=[str(part) for part in arguments])
        return [fork(code, RANK=str(rank), LOCAL_RANK=str(rank), **where) for rank in range(size)]

    return run
