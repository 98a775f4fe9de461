"""Scores of every clip with every caption."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from clipseq.engine.options import check_kind
from clipseq.figures.canvas import make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray


def draw_matrices(
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

    Raises:
        ClipseqError: matplotlib is not installed.
        TypeError, ValueError: an argument does not fit; every matrix must be (N, N) for N names.
    """
    check_kind("matrices", matrices, Mapping, "a mapping from models to scores")
    check_kind("first", first, (list, tuple), "a list of names")
    names = list(first)
    for name in names:
        check_kind("first", name, str, "a list of names")
    for name, matrix in matrices.items():
        shape = np.shape(matrix) if isinstance(matrix, np.ndarray) else type(matrix).__name__
        if shape != (len(names), len(names)) or not names or matrix.dtype.kind not in "fiu":
            raise ValueError(
                f"matrices[{name!r}] must be scores {(len(names), len(names))}, one row for each "
                f"of the names in first, got {shape}"
            )
    if not matrices:
        raise ValueError("matrices must hold at least one model, got none")
    if order is None:
        order = np.argsort(np.asarray(names), kind="stable")
    sorted_names = [names[i] for i in order]
    starts = [i for i, name in enumerate(sorted_names) if i == 0 or name != sorted_names[i - 1]]
    stops = [*starts[1:], len(sorted_names)]
    figure = make_figure(6.4 * len(matrices) + 0.8, 6.9)
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
