"""The page on fast similarities leads to a plugin whose kernels pass the checks that it shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fast_similarities.md"


def files_of_the_page():
    """Return file name -> content: the first blocks make one module, others say their names."""
    scores, files = [], {}
    for token in MarkdownIt().parse(PAGE.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info == "python":
            scores.append(token.content)
        elif token.type == "fence" and token.info.startswith("{code-block} python"):
            caption, _, content = token.content.partition("\n")
            files[caption.removeprefix(":caption: ")] = content
    # The last of the first blocks uses the module.
    return {
        "clipseq_overlap/__init__.py": "",
        "clipseq_overlap/scores.py": "\n".join(scores[:-1]),
    } | files


@pytest.mark.skipif(not PAGE.exists(), reason="the tests were copied without the docs")
def test_the_kernels_of_the_page_pass_its_checks(tmp_path):
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    for name, content in files_of_the_page().items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "3 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
