"""The example distributions pass their own tests and the conformance kit.

They are installed next to each other, and one interpreter runs everything. The kit tries five
examples for each promise here; an author who runs these tests tries more.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from as_installed import environment

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = ["sinkhorn", "smooth-maxsim", "drop-dtw", "otam"]


def test_they_pass_as_installed(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    sources = [EXAMPLES / f"clipseq-{name}" for name in NAMES]
    environments = [environment(source, tmp_path) for source in sources]
    paths = os.pathsep.join(one["PYTHONPATH"] for one in environments)
    similarities = [name.replace("-", "_") for name in NAMES]
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini",
        # The authors' own tests run the first check only: the command line asks for the others,
        # with fewer examples.
        "-k", "not keeps_the_contract or forward_and_backward", "--clipseq-examples", "5",
        *(f"--clipseq-check={name}" for name in similarities), "--junit-xml", "report.xml",
        *(str(source / "tests") for source in sources),
    ]  # fmt: skip
    finished = subprocess.run(
        command,
        cwd=tmp_path,
        env=environments[0] | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    cases = list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))
    for name in similarities:
        own = [case.get("name") for case in cases if f"test_{name}" in case.get("classname")]
        assert len(own) > 5, name
        assert any(case.startswith("test_keeps_the_contract") for case in own), name
        checked = [case for case in cases if case.get("name").startswith(f"clipseq[{name}]")]
        assert len(checked) > 15, name


@pytest.mark.parametrize("name", NAMES)
def test_uses_public_names_only(name):
    source = (EXAMPLES / f"clipseq-{name}" / f"clipseq_{name.replace('-', '_')}.py").read_text()
    imports = [line for line in source.splitlines() if "import" in line and "clipseq" in line]
    assert imports == ["from clipseq import Sequences, Similarity, hookimpl"]
