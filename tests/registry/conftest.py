"""Distributions as pip would install them."""

import sys
import textwrap

import pytest


@pytest.fixture
def distribution(tmp_path, monkeypatch, fresh_registry):
    """Return a function that puts a distribution on the path: metadata, entry point and module."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(source, name="foo", version="1.2"):
        module = f"clipseq_{name}_{len(made)}_{tmp_path.name.replace('-', '_')}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"clipseq_{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: clipseq-{name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[clipseq]\n{name} = {module}\n")

    yield make
    for module in made:
        sys.modules.pop(module, None)
