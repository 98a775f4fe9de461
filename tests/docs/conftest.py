"""The site, built once for all tests."""

import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


@attrs.frozen
class Site:
    """A built site.

    Attributes:
        folder: the folder of its pages.
        names: (kind, name) of everything that a page describes, such as (`py:function`,
            `clipseq.unit`).
    """

    folder: Path
    names: frozenset[tuple[str, str]]

    def has(self, domain: str, name: str) -> bool:
        """Return whether a page describes the name, as any kind of that domain."""
        return any(kind.startswith(domain) and name == known for kind, known in self.names)


@pytest.fixture(scope="session")
def build() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that builds pages as ``make docs`` does, with every warning an error."""

    def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
        pytest.importorskip("sphinx", reason="the extra docs is not installed")
        command = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning"]
        command += ["--keep-going", "--nitpicky", "--quiet"]
        command += ["--conf-dir", str(ROOT / "docs"), "--doctree-dir", str(out / "doctrees")]
        path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [*command, str(source), str(out)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return build


@pytest.fixture(scope="session")
def site(
    build: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> Site:
    """The whole site, built once for all workers of a run."""
    if not (ROOT / "docs" / "conf.py").exists():
        pytest.skip("the tests were copied without the docs")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    out = base / "site"
    with FileLock(base / "site.lock"):
        if not (out / "objects.inv").exists():
            finished = build(ROOT / "docs", out)
            assert finished.returncode == 0, finished.stderr
    return Site(out, _inventory(out / "objects.inv"))


def _inventory(path: Path) -> frozenset[tuple[str, str]]:
    # Four lines of plain text precede lines of name, kind, priority, address and title.
    text = zlib.decompress(path.read_bytes().split(b"\n", 4)[4]).decode()
    found = re.findall(r"^(.+?)\s+(\S+:\S+)\s+-?\d+\s+\S*\s+.*$", text, re.MULTILINE)
    return frozenset((kind, name) for name, kind in found)
