"""A run is trained by one command at a time."""

import subprocess
import sys

import pytest

from clipseq.errors import ConfigError
from clipseq.training.folder import RunFolder
from clipseq.training.lock import locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no lock on Windows")

HOLDS = """
import sys
from pathlib import Path
from clipseq.training.folder import RunFolder
from clipseq.training.lock import locked
with locked(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_command_is_told_who_trains_the_run(tmp_path):
    folder = RunFolder(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=rf"while process {other.pid} on .* trains it; wait"),
            locked(folder),
        ):
            pass
        other.kill()  # a kill frees the lock
        other.wait()
        with locked(folder):
            pass
    finally:
        other.kill()
        other.communicate()
