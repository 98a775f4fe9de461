"""Figures of losses, scores and alignments as matplotlib Figures (extra `plot`).

They do not use pyplot, its global list of figures or the display: every figure is a `Figure` with
its own Agg canvas, which `save`, or its own method ``savefig``, writes to a file.
"""

from clipseq.figures.alignment import Action, SignalSteps, TextSteps, draw_alignment
from clipseq.figures.canvas import save
from clipseq.figures.losses import Curve, draw_losses
from clipseq.figures.matrices import draw_matrices

__all__ = [
    "Action",
    "Curve",
    "SignalSteps",
    "TextSteps",
    "draw_alignment",
    "draw_losses",
    "draw_matrices",
    "save",
]
