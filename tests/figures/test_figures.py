"""Figures are drawn without pyplot, and show the given numbers."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq import figures
from clipseq.data import Axis
from clipseq.errors import ClipseqError
from clipseq.figures import SignalSteps, TextSteps, draw_alignment
from clipseq.figures.alignment import busy_rows
from clipseq.figures.losses import running_mean


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
    figure = figures.draw_losses({"plain": plain, "combined": combined})
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
    figure = figures.draw_matrices({"one": scores, "two": scores * 3 + 1}, first=first)
    one, two = (panel.images[0].get_array() for panel in figure.axes[:2])
    order = [1, 4, 3, 0, 2, 5]
    expected = scores[np.ix_(order, order)]
    expected = (expected - expected.mean(1, keepdims=True)) / expected.std(1, keepdims=True)
    np.testing.assert_allclose(one, expected)
    np.testing.assert_allclose(two, expected)  # a model's scale and offset do not matter
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["box", "fall", "wave"]


WORDS = TextSteps("text", ("someone", "waves", "sits", "down"))


def signal(name="radar", edges=(0.0, 2.0, 4.0, 5.0), **options):
    """Return a recording of 40 frames in three steps, of which the last is half as long."""
    return SignalSteps(
        name,
        np.array(edges),
        maps={"doppler_time": np.eye(8, 40), "range_time": np.ones((4, 40))},
        **options,
    )


def cells(figure):
    """Return the values, and the edges across and down, of the drawn weights."""
    (mesh,) = (c for c in figure.axes[0].collections if hasattr(c, "get_coordinates"))
    corners = mesh.get_coordinates()
    return mesh.get_array(), corners[0, :, 0], corners[:, 0, 1]


def test_alignment_boxes_each_action_at_its_time_and_its_words():
    weights = np.random.default_rng(1).random((3, 4))
    actions = [
        figures.Action("wave", 0.5, 1.5, (1,)),
        figures.Action("sit down", 2.0, 4.0, (2, 3)),
    ]
    figure = draw_alignment(signal(), WORDS, weights, actions=actions)
    values, across, down = cells(figure)
    np.testing.assert_allclose(values, weights.T / weights.max(0)[:, None])
    assert across.tolist() == [0.0, 2.0, 4.0, 5.0]  # the last step is shorter
    assert down.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    grid = figure.axes[0]
    boxes = [line.get_xydata() for line in grid.lines if len(line.get_xydata()) == 5]
    corners = [(*box.min(axis=0), *box.max(axis=0)) for box in boxes]
    assert corners == [(0.5, 0.5, 1.5, 1.5), (2.0, 1.5, 4.0, 3.5)]
    labels = {label.get_text(): label.get_color() for label in grid.get_yticklabels()}
    assert labels["sits"] == labels["down"] != labels["waves"] != labels["someone"]
    assert {"wave", "sit down", "time (s)"} <= set(texts(figure))


def test_time_runs_to_the_right_whichever_side_is_the_text():
    weights = np.random.default_rng(1).random((3, 4))
    one, other = (
        draw_alignment(signal(), WORDS, weights),
        draw_alignment(WORDS, signal(), weights.T),
    )
    for a, b in zip(cells(one), cells(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_signals_have_time_on_both_axes_and_two_texts_words():
    weights = np.random.default_rng(1).random((3, 2))
    other = signal("motion", (0.0, 1.0, 3.0), unit="frames")
    figure = draw_alignment(signal(), other, weights)
    values, across, down = cells(figure)
    np.testing.assert_allclose(values, weights.T / weights.max())
    assert (across.tolist(), down.tolist()) == ([0.0, 2.0, 4.0, 5.0], [0.0, 1.0, 3.0])
    assert {"time (s)", "time (frames)"} <= set(texts(figure))
    images = [panel.images[0].get_extent() for panel in figure.axes if panel.images]
    assert [extent[:2] for extent in images[:2]] == [[0.0, 5.0]] * 2
    assert [extent[2:] for extent in images[2:]] == [[3.0, 0.0]] * 2  # its time runs down
    figure = draw_alignment(WORDS, TextSteps("caption", ("he", "waves")), np.ones((4, 2)))
    assert {*WORDS.words, "he", "text", "caption, word by word"} <= set(texts(figure))


def test_a_known_axis_gives_ticks_a_unit_and_a_colour_scale():
    axis = Axis(label="velocity", unit="m/s", first=-7.0, last=7.0, values="power (dB)", scale=2.0)
    weights = np.ones((3, 4))
    plain = draw_alignment(signal(), WORDS, weights)
    known = draw_alignment(signal(axes={"doppler_time": axis}), WORDS, weights)
    assert {"doppler", "range"} <= set(texts(plain))
    assert {"velocity (m/s)", "range", "power\n(dB)"} <= set(texts(known))
    assert not {"velocity (m/s)", "power\n(dB)"} & set(texts(plain))
    image = known.axes[1].images[0]
    assert image.get_extent() == [0.0, 5.0, -8.0, 8.0]  # the outer edges of 8 bins of 2 m/s
    np.testing.assert_array_equal(image.get_array(), 2 * np.eye(8, 40))
    assert len(known.axes[1].get_yticks()) > 0
    assert len(plain.axes[1].get_yticks()) == 0


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=80), st.floats(0.01, 1.0))
def test_running_mean_is_a_mean_over_a_window(values, share):
    half = max(1, int(len(values) * share / 2))
    expected = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    np.testing.assert_allclose(running_mean(np.array(values), share=share), expected, atol=1e-9)


@pytest.mark.slow
def test_a_figure_is_saved_and_pyplot_is_never_loaded(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path; from clipseq import figures;"
        "assert 'matplotlib' not in sys.modules;"
        "c = figures.Curve(*[np.arange(3.0) for _ in range(4)]);"
        "figures.save(figures.draw_losses({'a': {'loss_clip': c}}), Path(sys.argv[1]));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    path = tmp_path / "deep" / "losses.png"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_notebook_shows_a_figure_as_a_picture():
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(figures.draw_losses({"run": {"loss_clip": curve()}}))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_without_matplotlib_it_names_the_extra_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "clipseq.figures.shown", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ClipseqError, match=r"pip install 'clipseq\[plot\]'"):
        figures.draw_losses({"a": {"loss_clip": curve()}})


def test_busy_rows_leave_out_the_empty_ones():
    values = np.random.default_rng(0).normal(0, 0.05, (64, 100))
    values[20:30, 10:60] += 2.0
    assert busy_rows(values) == slice(18, 32)
    values[0] += 2.0
    assert busy_rows(values).start == 0
    assert busy_rows(np.zeros((8, 5))) == slice(0, 8)
