"""Runs in real processes, which are forks of a process that has imported everything already."""

import socket

import pytest
from processes import Started
from processes import fork as fork_process


@pytest.fixture
def started(tmp_path):
    """All processes of the test, which do not outlive it."""
    processes: list[Started] = []
    yield processes
    for process in processes:
        process.kill()


@pytest.fixture
def fork(started, tmp_path):
    """`fork(code, RANK=...)`: a process that runs the Python code, with that environment."""

    def run(code: str, **environment: str) -> Started:
        path = tmp_path / f"process{len(started)}.txt"
        started.append(fork_process(code, path, **environment))
        return started[-1]

    return run


TRAIN = """
import sys
{before}
sys.argv = {command!r}
from clipseq.cli.app import run
run()
"""


@pytest.fixture
def start(fork):
    """`start("clipseq", "train", path)`: a process of this command line, with code `before` it.

    Processes that it starts in turn run the script that is its first word.
    """

    def run(*command, before: str = "", **environment: str) -> Started:
        words = [str(word) for word in command]
        return fork(TRAIN.format(before=before, command=words), **environment)

    return run


@pytest.fixture
def torchrun(fork):
    """`torchrun(3, script, "train", path)`: the command of that name, which forks its workers."""

    def run(size: int, *command) -> Started:
        words = ["torchrun", "--standalone", "--nproc-per-node", size, "--start-method", "fork"]
        argv = [str(word) for word in (*words, "--run-path", *command)]
        return fork(
            f"import sys; sys.argv = {argv!r}\nfrom torch.distributed.run import main\nmain()"
        )

    return run


@pytest.fixture
def start_ranks(start):
    """`start_ranks(3, ["train", path])`: a process for each rank, as a launcher starts them.

    The last one also gets the arguments `last`.
    """

    def run(size: int, arguments, before: str = "", last=()) -> list[Started]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            start("clipseq", *each, before=before, RANK=str(r), LOCAL_RANK=str(r), **where)
            for r, each in enumerate([arguments] * (size - 1) + [[*arguments, *last]])
        ]

    return run
