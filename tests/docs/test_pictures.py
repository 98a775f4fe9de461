"""The committed pictures of the similarities are those that the code draws."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import clipseq

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "draw_figures.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the tests were copied without docs")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_figures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_they_are_of_the_built_in_similarities(script):
    infos = clipseq.available_similarities().values()
    assert set(script.OPTIONS) == {i.name for i in infos if i.distribution == "clipseq"}
    page = (ROOT / "docs" / "similarities.md").read_text(encoding="utf-8")
    assert all(f"(figures/similarity-{name}.png)" in page for name in script.OPTIONS)


def test_drawn_again_they_are_the_same(script, tmp_path):
    from matplotlib.image import imread

    for drawn in script.draw_all(tmp_path):
        committed, again = imread(script.FIGURES / drawn.name), imread(drawn)
        assert committed.shape == again.shape, f"{drawn.name}: run docs/draw_figures.py"
        # Another version of a font or of freetype moves the edges of letters, but not bars or
        # cells.
        apart = float(np.abs(committed - again).mean())
        assert apart < 0.001, f"{drawn.name}: run docs/draw_figures.py ({apart})"


def test_only_temporal_tells_orders_apart(script):
    # The page claims this about the pictures.
    x, captions = script.recording_and_captions()
    right, permuted, other = captions.values()
    for name in ("global", "local", "attention", "temporal", "combined"):
        similarity = clipseq.get_similarity(name, **script.OPTIONS[name])
        scores = [similarity(x, y).item() for y in (right, permuted, other)]
        assert scores[2] < 0.2
        if name in ("temporal", "combined"):
            assert scores[0] > scores[1] + 0.1
        else:
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)
