"""The page about other libraries is true: where one is installed, both give the same numbers."""

import importlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "coming_from.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the tests were copied without the docs")

MODULES = {
    "sentence-transformers": ("sentence_transformers",),
    "PyLate": ("pylate", "pylate.utils", "pylate.scores", "pylate.scores.colbert"),
    "open_clip": ("open_clip", "open_clip.loss"),
    "tslearn": ("tslearn",),
}
"""The modules that each section needs. All but the last are imported without their `__init__`."""


def sections():
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)


def import_alone(name, monkeypatch):
    """Import a package without its `__init__`, which would import what is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"{name} is not installed")
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, name, package)
    return package


@pytest.mark.parametrize("name", MODULES)
def test_both_give_the_same(name, monkeypatch):
    for module in MODULES[name][:1]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{name} is not installed: see benchmarks/peers.txt")
    # Numba must not use OpenMP, which torch uses too.
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "workqueue")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    *packages, last = MODULES[name]
    for package in packages:
        import_alone(package, monkeypatch)
    found = importlib.import_module(last)
    if name == "PyLate":
        sys.modules["pylate.scores"].colbert_scores = found.colbert_scores
    names: dict = {}
    for title, text in sections():
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            exec(code, names)
        if title == name:
            break
    (theirs,) = re.findall(r"^```{code-block} python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(theirs, names)
    ours, theirs = (np.asarray(getattr(names[k], "detach", lambda k=k: names[k])()) for k in
                    ("ours", "theirs"))  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_section_has_its_library():
    assert [title for title, _ in sections()] == list(MODULES)
