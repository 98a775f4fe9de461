"""Figures: functions that draw arrays as a matplotlib Figure (extra `plot`).

They do not use pyplot, its global list of figures or the display: every figure is a `Figure` with
its own Agg canvas, which `save` writes to a file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from jaxtyping import Float, Int

from clipseq.errors import ClipseqError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray

# Okabe and Ito's palette, which colour-blind readers can distinguish too.
RUN_COLOURS = ("#4d4d4d", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
ACTION_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MUTED = "#8a8a8a"


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ClipseqError("figures need matplotlib: pip install 'clipseq[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write `figure` to `path` (the suffix names the format) at 150 dots per inch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


@attrs.frozen(eq=False)
class Curve:
    """One quantity over optimizer steps: at every training step, and at the validations."""

    steps: Int[Array, "n"]
    values: Float[Array, "n"]
    validation_steps: Int[Array, "m"]
    validation_values: Float[Array, "m"]


def loss_curves(runs: Mapping[str, Mapping[str, Curve]]) -> "Figure":
    """Draw losses over optimizer steps: one panel per quantity, one colour per run.

    Args:
        runs: run name -> quantity (loss_clip, loss_seq, loss_total) -> curve. A run may lack a
            quantity; plain CLIP has no loss_seq.

    Returns:
        A figure in which a thin line shows the loss of each training step, a bold line its running
        mean, and dots on a dashed line the validation loss.
    """
    fullest = sorted(runs.values(), key=len, reverse=True)
    quantities = list(dict.fromkeys(name for curves in fullest for name in curves))
    figure = _figure(4.3 * len(quantities), 3.8)
    panels: Any = figure.subplots(1, len(quantities), squeeze=False)[0]
    for panel, quantity in zip(panels, quantities, strict=True):
        for colour, (run, curves) in zip(_cycle(RUN_COLOURS), runs.items(), strict=False):
            if quantity not in curves:
                continue
            curve = curves[quantity]
            panel.plot(curve.steps, curve.values, color=colour, linewidth=0.5, alpha=0.3)
            panel.plot(
                curve.steps, running_mean(curve.values), color=colour, linewidth=2, label=run
            )
            panel.plot(
                curve.validation_steps,
                curve.validation_values,
                color=colour,
                linestyle="--",
                linewidth=1,
                marker="o",
                markersize=4,
                markerfacecolor="white",
            )
        missing = [run for run, curves in runs.items() if quantity not in curves]
        if missing:
            panel.text(
                0.97, 0.97, f"{', '.join(missing)}: no {quantity}", color=_MUTED, fontsize=9,
                ha="right", va="top", transform=panel.transAxes,
            )  # fmt: skip
        panel.set_title(quantity, loc="left", fontweight="bold")
        panel.set_xlabel("optimizer step")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss (natural-log units)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("Training loss (line: running mean) and validation loss (dashed, dots)")
    return figure


def similarity_matrices(
    matrices: Mapping[str, Float[Array, "N N"]],
    *,
    first: Sequence[str],
    order: Int[Array, "N"] | None = None,
    notes: Mapping[str, str] | None = None,
) -> "Figure":
    """Draw the scores of every test clip (row) with every test caption (column), per model.

    Args:
        matrices: model name -> scores; row i and column i belong together.
        first: the first action of each clip, which labels rows and columns.
        order: the order in which clips are drawn; by default they are sorted by `first`, stably.
        notes: model name -> a line under its title, such as its R@1.

    Returns:
        A figure with one panel per model. Every row is shown relative to its own mean and spread,
        because retrieval is decided by comparing a clip's own caption (on the diagonal) with the
        others in its row, and the raw cosines of two models need not share a scale.
    """
    names = list(first)
    if order is None:
        order = np.argsort(np.asarray(names), kind="stable")
    sorted_names = [names[i] for i in order]
    starts = [i for i, name in enumerate(sorted_names) if i == 0 or name != sorted_names[i - 1]]
    stops = [*starts[1:], len(sorted_names)]
    figure = _figure(6.4 * len(matrices) + 0.8, 6.9)
    panels: Any = figure.subplots(1, len(matrices), squeeze=False)[0]
    image: Any = None
    for panel, (name, matrix) in zip(panels, matrices.items(), strict=True):
        scores = matrix[np.ix_(order, order)]
        spread = scores.std(axis=1, keepdims=True)
        relative = (scores - scores.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-12)
        image = panel.imshow(relative, vmin=0.0, vmax=3.5, cmap="magma_r", interpolation="nearest")
        for start in starts[1:]:
            panel.axhline(start - 0.5, color="#bbbbbb", linewidth=0.4)
            panel.axvline(start - 0.5, color="#bbbbbb", linewidth=0.4)
        centres = [(a + b - 1) / 2 for a, b in zip(starts, stops, strict=True)]
        labels = [sorted_names[start] for start in starts]
        panel.set_yticks(centres, labels, fontsize=8)
        panel.set_xticks(centres, labels, fontsize=8, rotation=90)
        panel.tick_params(length=0)
        panel.set_xlabel("caption, by its first action")
        note = "" if notes is None else notes.get(name, "")
        panel.set_title(f"{name}\n{note}" if note else name, fontsize=11)
    panels[0].set_ylabel("radar clip, by its first action")
    figure.colorbar(
        image, ax=list(panels), shrink=0.75, extend="both",
        label="score, in standard deviations from the mean of its row",
    )  # fmt: skip
    figure.suptitle("Every test clip against every test caption; a right answer is on the diagonal")
    return figure


@attrs.frozen
class Action:
    """One action of a clip: its name, its start and stop in seconds, its words in the caption."""

    name: str
    start: float
    stop: float
    words: tuple[int, ...]


def alignment(
    maps: Mapping[str, Float[Array, "F T"]],
    *,
    duration: float,
    words: Sequence[str],
    weights: Float[Array, "S L"],
    actions: Sequence[Action],
    title: str = "",
) -> "Figure":
    """Draw one clip's maps over time, and the times that match each word of its caption.

    Args:
        maps: view name -> time-frequency map with frames along the second axis; only the bins in
            which something happens are drawn.
        duration: length of the clip in seconds, which the maps' frames and the rows of `weights`
            divide evenly.
        words: words of the caption in order.
        weights: how strongly time step s matches word l; each word is drawn relative to its own
            maximum.
        actions: the true actions, and the words that describe them.
        title: title of the figure.

    Returns:
        A figure with the maps above and the words below, on one time axis. Each true action has
        a colour, which marks its time in all panels, its words, and a box around those words at
        that time. A dark streak inside its box means that word and action line up.
    """
    rows = len(maps)
    figure = _figure(10.5, 1.35 * rows + 0.3 * len(words) + 1.6)
    panels: Any = figure.subplots(
        rows + 1, 1, sharex=True, height_ratios=[1.35] * rows + [0.3 * len(words) + 0.3]
    )
    for panel, (view, values) in zip(panels, maps.items(), strict=False):
        low, high = np.percentile(values, [20, 99.5])
        shown = busy_rows(values)
        panel.imshow(
            values[shown], origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high,
            extent=(0.0, duration, float(shown.start), float(shown.stop)),
        )  # fmt: skip
        panel.set_ylabel(view.replace("_time", "").replace("_", " "))
        panel.set_yticks([])
    grid = panels[-1]
    relative = weights.T / np.maximum(weights.max(axis=0)[:, None], 1e-12)
    grid.imshow(
        relative, aspect="auto", cmap="Greys", vmin=0.0, vmax=1.0, interpolation="nearest",
        extent=(0.0, duration, len(words) - 0.5, -0.5),
    )  # fmt: skip
    grid.set_yticks(range(len(words)), words)
    grid.tick_params(axis="y", length=0)
    grid.set_ylabel("caption, word by word")
    grid.set_xlabel("time (s)")
    grid.set_xlim(0.0, duration)
    for word in range(len(words)):
        grid.axhline(word + 0.5, color="white", linewidth=1.5)
    for label in grid.get_yticklabels():
        label.set_color(_MUTED)
    for colour, action in zip(_cycle(ACTION_COLOURS), actions, strict=False):
        for panel in panels[:-1]:
            for edge in (action.start, action.stop):
                panel.axvline(edge, color="white", linewidth=1.0, linestyle=":")
            panel.plot(
                [action.start, action.stop], [1.0, 1.0], color=colour, linewidth=6,
                solid_capstyle="butt", transform=panel.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
        panels[0].text(
            (action.start + action.stop) / 2, 1.06, action.name, color=colour, fontweight="bold",
            ha="center", va="bottom", transform=panels[0].get_xaxis_transform(),
        )  # fmt: skip
        grid.axvspan(action.start, action.stop, color=colour, alpha=0.10, linewidth=0)
        if action.words:
            top, bottom = min(action.words) - 0.5, max(action.words) + 0.5
            grid.plot(
                [action.start, action.stop, action.stop, action.start, action.start],
                [top, top, bottom, bottom, top],
                color=colour, linewidth=2.5,
            )  # fmt: skip
        for word in action.words:
            label = grid.get_yticklabels()[word]
            label.set_color(colour)
            label.set_fontweight("bold")
    for panel in panels:
        panel.spines[:].set_visible(False)
    if title:
        figure.suptitle(title)
    return figure


def busy_rows(values: Float[Array, "F T"], *, margin: float = 0.15) -> slice:
    """Return the bins to draw: those that stand out from the map's floor at any time, and a margin.

    A bin stands out if it reaches a third of the way from the floor to the peaks. A person fills
    few of a radar's bins, so a whole map would be mostly black.
    """
    low, high = np.percentile(values, [20, 99.5])
    busy = np.flatnonzero(values.max(axis=1) > low + (high - low) / 3)
    if len(busy) == 0:
        return slice(0, len(values))
    extra = max(2, round(margin * (busy[-1] - busy[0] + 1)))
    return slice(max(0, int(busy[0]) - extra), min(len(values), int(busy[-1]) + 1 + extra))


def running_mean(values: Float[Array, "n"], *, share: float = 0.04) -> Float[Array, "n"]:
    """Return the mean over a centred window of `share` of the curve, cut off at both ends."""
    half = max(1, int(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _cycle(colours: Sequence[str]) -> list[str]:
    return list(colours) * 8
