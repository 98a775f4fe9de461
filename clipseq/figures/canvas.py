"""Figures without pyplot: each has its own canvas, and `save` writes it to a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipseq.engine.files import replacing
from clipseq.engine.options import to_path
from clipseq.engine.process_state import restored
from clipseq.errors import ClipseqError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can distinguish too.
RUN_COLOURS = ("#4d4d4d", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
ACTION_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MUTED = "#8a8a8a"


def make_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches; raise ClipseqError without matplotlib."""
    with restored():
        try:
            from clipseq.figures.shown import ShownFigure
        except ModuleNotFoundError as error:
            raise ClipseqError("figures need matplotlib: pip install 'clipseq[plot]'") from error
    return ShownFigure(width, height)


def save(figure: "Figure", path: str | Path) -> None:
    """Write `figure` to `path` (the suffix names the format) at 150 dots per inch.

    Raises:
        TypeError: `figure` is not a figure, or `path` is not a path.
        ValueError: matplotlib has no format of that name.
        OSError: the file cannot be written.
    """
    path = to_path("path", path)
    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure must be a matplotlib figure, got {type(figure).__name__}")
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise ValueError(f"path must end in one of {', '.join(formats)}, got {str(path)!r}")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
