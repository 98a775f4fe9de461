"""Commands of a core install, without any package of the extras."""

import subprocess
import sys

import pytest

CORE = """
import sys

EXTRAS = set("lightning tensorboard tokenizers tomli_w transformers matplotlib".split())
EXTRAS |= {"huggingface_hub", "hypothesis", "pytest", "scipy", "pandas"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from clipseq.__main__ import main

for arguments in (
    ["--version"],
    ["doctor"],
    ["similarities"],
    ["bench", "global", "--batch", "2"],
    ["new-plugin", "mine"],
    ["train", "absent.toml"],
):
    sys.argv = ["clipseq", *arguments]
    try:
        main()
    except SystemExit as end:
        print("STATUS", *arguments, end.code or 0, flush=True)
"""


@pytest.mark.slow
def test_a_core_install_runs_the_commands_that_need_no_extra(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CORE], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    statuses = [line for line in done.stdout.splitlines() if line.startswith("STATUS")]
    assert statuses[:5] == [
        "STATUS --version 0",
        "STATUS doctor 0",
        "STATUS similarities 0",
        "STATUS bench global --batch 2 0",
        "STATUS new-plugin mine 0",
    ], done.stderr
    assert (tmp_path / "clipseq-mine" / "pyproject.toml").is_file()
    # What needs an extra says so in one line.
    assert statuses[5].startswith("STATUS train")
    assert not statuses[5].endswith(" 0")
    assert "Traceback" not in done.stderr
