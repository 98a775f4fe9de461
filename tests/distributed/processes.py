"""Real processes that start at once: forks of a process that has imported everything already.

An interpreter that imports torch, its compiler and lightning takes five seconds of a core before it
does anything, so each worker of pytest pays for this once.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path

PATIENCE = 1200
"""Seconds after which a test gives up on a process; a busy machine is slow."""

PRELOADED = [
    "pytest",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "lightning.fabric",
    "clipseq.cli.app",
    "clipseq.training.loop",
    "clipseq.training.journal",
    "clipseq_global",
    "clipseq_local",
    "clipseq_attention",
    "clipseq_temporal",
    "clipseq_combined",
]

CHILD = """
import os, sys, types
os.environ.update(environment)
os.setsid()
os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), 2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
import torch
torch.set_num_threads(1)
# What is started in this process finds a main module without a file, as in an interpreter.
sys.modules["__main__"] = types.ModuleType("__main__")
exec(code, sys.modules["__main__"].__dict__)
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
            assert status is not None, f"has not ended in {PATIENCE} s: {self.printed()}"
        return status, self.printed()

    def wait_for_step(self, step: int) -> None:
        """Wait until it has printed progress of at least that many steps."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            alive = self.is_alive
            steps = re.findall(r"^training: (\d+)/", self.printed(), re.MULTILINE)
            if steps and int(steps[-1]) >= step:
                return
            assert alive, f"the process ended before step {step}: {self.printed()}"
            time.sleep(0.02)
        raise AssertionError(f"the process did not reach step {step}: {self.printed()}")

    def kill(self) -> None:
        """End it, and all processes that it has started, if it is still alive."""
        if self.is_alive:
            os.killpg(self.pid, signal.SIGKILL)


def fork(code: str, path: Path, **environment: str) -> Started:
    """Run Python code in a new process, whose standard error goes to the file `path`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    path.touch()
    names = {"environment": environment, "path": str(path), "code": code}
    process = context.Process(target=exec, args=(CHILD, names))
    process.start()
    return Started(process, path)


def run_ranks(module: str, folder: Path, ranks: int, *arguments: str) -> None:
    """Call ``module.main(FOLDER, RANK, RANKS, *arguments)`` in a process for each rank.

    Every call must return.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r})"
        f"\nimport {module}"
    )
    started = []
    try:
        for rank in range(ranks):
            call = f"{module}.main(Path({str(folder)!r}), {rank}, {ranks}, *{arguments!r})"
            started.append(fork(f"{code}\n{call}", folder / f"{rank}.log"))
        codes = [process.ended()[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(codes):
        logs = [process.printed()[-2000:] for process in started]
        raise AssertionError(f"the ranks ended with {codes}:\n" + "\n----\n".join(logs))
