"""The losses of a run, from its metrics.csv, and the loss of a model that guesses."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipseq.figures import Curve
from clipseq.training.journal import read_rows


def read_curves(metrics: Path) -> dict[str, Curve]:
    """Return the losses in a run's metrics.csv, in the order loss_clip, loss_seq, loss_total."""
    rows = read_rows(metrics)
    curves: dict[str, Curve] = {}
    for name in ("loss_clip", "loss_seq", "loss_total"):
        if not rows or name not in rows[0]:
            continue
        validated = [row for row in rows if row.get(f"val_{name}")]
        curves[name] = Curve(
            steps=np.array([int(row["step"]) for row in rows]),
            values=np.array([float(row[name]) for row in rows]),
            validation_steps=np.array([int(row["step"]) for row in validated], dtype=int),
            validation_values=np.array([float(row[f"val_{name}"]) for row in validated]),
        )
    return curves


def chance_loss(model: Mapping[str, Any], batch_size: int) -> float | None:
    """Return ln(B), the InfoNCE of equal scores in a batch of B clips; None for other losses.

    Args:
        model: the table [model] of the run.
        batch_size: B.
    """
    if model.get("use_siglip") or model.get("loss", "clip") != "clip":
        return None
    return math.log(batch_size)
