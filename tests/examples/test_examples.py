"""Each example distribution passes its own tests, which include the conformance kit."""

from pathlib import Path

import pytest
from as_installed import run_its_tests

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = ["sinkhorn", "smooth-maxsim", "drop-dtw", "otam"]


@pytest.mark.parametrize("name", NAMES)
def test_passes_as_installed(name, tmp_path):
    finished = run_its_tests(EXAMPLES / f"clipseq-{name}", tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", NAMES)
def test_uses_public_names_only(name):
    source = (EXAMPLES / f"clipseq-{name}" / f"clipseq_{name.replace('-', '_')}.py").read_text()
    imports = [line for line in source.splitlines() if "import" in line and "clipseq" in line]
    assert imports == ["from clipseq import Sequences, Similarity, hookimpl"]
