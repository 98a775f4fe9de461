"""Figures are drawn without pyplot, and show the given numbers."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq.demo import figures
from clipseq.errors import ClipseqError


def curve(steps=20, *, validated=True):
    at = np.arange(1, steps + 1)
    checks = at[::5] if validated else at[:0]
    return figures.Curve(at, 3.0 / at, checks, 3.5 / checks)


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def test_loss_curves_have_a_panel_for_each_loss():
    plain = {"loss_clip": curve(), "loss_total": curve()}
    combined = {"loss_clip": curve(), "loss_seq": curve(), "loss_total": curve(validated=False)}
    figure = figures.loss_curves({"plain": plain, "combined": combined})
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == ["loss_clip", "loss_seq", "loss_total"]
    # a thin line, a running mean and the validation for every curve
    assert [len(panel.lines) for panel in figure.axes] == [6, 3, 6]
    assert "plain: no loss_seq" in texts(figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), plain["loss_clip"].values)


def test_similarity_matrices_are_sorted_and_relative_to_their_row():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 6))
    first = ["wave", "box", "wave", "fall", "box", "wave"]
    figure = figures.similarity_matrices({"one": scores, "two": scores * 3 + 1}, first=first)
    one, two = (panel.images[0].get_array() for panel in figure.axes[:2])
    order = [1, 4, 3, 0, 2, 5]
    expected = scores[np.ix_(order, order)]
    expected = (expected - expected.mean(1, keepdims=True)) / expected.std(1, keepdims=True)
    np.testing.assert_allclose(one, expected)
    np.testing.assert_allclose(two, expected)  # a model's scale and offset do not matter
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["box", "fall", "wave"]


def test_alignment_boxes_each_action_at_its_time_and_its_words():
    weights = np.random.default_rng(1).random((10, 4))
    actions = [
        figures.Action("wave", 0.5, 1.5, (1,)),
        figures.Action("sit down", 2.0, 4.0, (2, 3)),
    ]
    figure = figures.alignment(
        {"doppler_time": np.zeros((8, 40)), "range_time": np.ones((4, 40))},
        duration=5.0,
        words=["someone", "waves", "sits", "down"],
        weights=weights,
        actions=actions,
    )
    grid = figure.axes[-1]
    np.testing.assert_allclose(grid.images[0].get_array(), weights.T / weights.max(0)[:, None])
    boxes = [line.get_xydata() for line in grid.lines if len(line.get_xydata()) == 5]
    corners = [(*box.min(axis=0), *box.max(axis=0)) for box in boxes]
    assert corners == [(0.5, 0.5, 1.5, 1.5), (2.0, 1.5, 4.0, 3.5)]
    labels = {label.get_text(): label.get_color() for label in grid.get_yticklabels()}
    assert labels["sits"] == labels["down"] != labels["waves"] != labels["someone"]
    assert {"wave", "sit down"} <= set(texts(figure))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=80), st.floats(0.01, 1.0))
def test_running_mean_is_a_mean_over_a_window(values, share):
    half = max(1, int(len(values) * share / 2))
    expected = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    np.testing.assert_allclose(
        figures.running_mean(np.array(values), share=share), expected, atol=1e-9
    )


def test_a_figure_is_saved_and_pyplot_is_never_loaded(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path; from clipseq.demo import figures;"
        "assert 'matplotlib' not in sys.modules;"
        "c = figures.Curve(*[np.arange(3.0) for _ in range(4)]);"
        "figures.save(figures.loss_curves({'a': {'loss_clip': c}}), Path(sys.argv[1]));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    path = tmp_path / "deep" / "losses.png"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ClipseqError, match=r"pip install 'clipseq\[plot\]'"):
        figures.loss_curves({"a": {"loss_clip": curve()}})


def test_busy_rows_leave_out_the_empty_ones():
    values = np.random.default_rng(0).normal(0, 0.05, (64, 100))
    values[20:30, 10:60] += 2.0
    assert figures.busy_rows(values) == slice(18, 32)
    values[0] += 2.0
    assert figures.busy_rows(values).start == 0
    assert figures.busy_rows(np.zeros((8, 5))) == slice(0, 8)
