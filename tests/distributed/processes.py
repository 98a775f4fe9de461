"""Real processes that make up one world."""

import os
import subprocess
import sys
import time
from pathlib import Path


def run_ranks(
    script: Path, folder: Path, ranks: int, *arguments: str, seconds: float = 240
) -> None:
    """Run ``script FOLDER RANK RANKS ARGUMENTS`` once for each rank; every run must succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    for rank in range(ranks):
        command = [sys.executable, str(script), str(folder), str(rank), str(ranks), *arguments]
        with (folder / f"{rank}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            )
    deadline = time.monotonic() + seconds
    try:
        codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        codes = [process.poll() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    if any(codes):
        logs = [(folder / f"{rank}.log").read_text()[-2000:] for rank in range(ranks)]
        raise AssertionError(f"the ranks ended with {codes}:\n" + "\n----\n".join(logs))
