"""Losses over optimizer steps."""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from jaxtyping import Float, Int

from clipseq.engine.options import check_kind, finite_number
from clipseq.figures.canvas import MUTED, RUN_COLOURS, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray


@attrs.frozen(eq=False)
class Curve:
    """One quantity over optimizer steps: at every training step, and at the validations."""

    steps: Int[Array, "n"]
    values: Float[Array, "n"]
    validation_steps: Int[Array, "m"]
    validation_values: Float[Array, "m"]


def draw_losses(
    runs: Mapping[str, Mapping[str, Curve]], *, chance: float | None = None
) -> "Figure":
    """Draw losses over optimizer steps: one panel per quantity, one colour per run.

    Args:
        runs: run name -> quantity (loss_clip, loss_seq, loss_total) -> curve. A run may lack a
            quantity; plain CLIP has no loss_seq.
        chance: the loss of a model that guesses, drawn as a dotted line.

    Returns:
        A figure in which a thin line shows the loss of each training step, a bold line its running
        mean, and dots on a dashed line the validation loss.

    Raises:
        ClipseqError: matplotlib is not installed.
        TypeError: `runs` does not map runs to curves, or `chance` is not a number.
        ValueError: `runs` has no curve, or `chance` is not finite.
    """
    check_kind("runs", runs, Mapping, "a mapping from runs to curves")
    for run, curves in runs.items():
        check_kind(f"runs[{run!r}]", curves, Mapping, "a mapping from quantities to curves")
        for quantity, curve in curves.items():
            check_kind(f"runs[{run!r}][{quantity!r}]", curve, Curve, "a Curve")
    if not any(runs.values()):
        raise ValueError("runs must hold at least one curve, got none")
    if chance is not None:
        chance = finite_number("chance", chance)
    fullest = sorted(runs.values(), key=len, reverse=True)
    quantities = list(dict.fromkeys(name for curves in fullest for name in curves))
    figure = make_figure(4.3 * len(quantities), 3.8)
    panels: Any = figure.subplots(1, len(quantities), squeeze=False)[0]
    for panel, quantity in zip(panels, quantities, strict=True):
        for colour, (run, curves) in zip(cycle(RUN_COLOURS), runs.items(), strict=False):
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
        if chance is not None:
            panel.axhline(chance, color=MUTED, linestyle=":", linewidth=1.5, label="chance")
        missing = [run for run, curves in runs.items() if quantity not in curves]
        if missing:
            panel.text(
                0.97, 0.97, f"{', '.join(missing)}: no {quantity}", color=MUTED, fontsize=9,
                ha="right", va="top", transform=panel.transAxes,
            )  # fmt: skip
        panel.set_title(quantity, loc="left", fontweight="bold")
        panel.set_xlabel("optimizer step")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss (natural-log units)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    title = "Training loss (line: running mean) and validation loss (dashed, dots)"
    if len(quantities) == 1:
        title = title.replace(" and ", "\nand ")
    figure.suptitle(title)
    return figure


def running_mean(values: Float[Array, "n"], *, share: float = 0.04) -> Float[Array, "n"]:
    """Return the mean over a centred window of `share` of the curve, cut off at both ends."""
    half = max(1, int(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
