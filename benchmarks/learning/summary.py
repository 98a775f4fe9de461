"""Means over seeds and paired bootstrap intervals of the runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

METRICS = {
    "R@1 signal to text": ("to_text", None),
    "R@1 text to signal": ("to_signal", None),
    "order accuracy": ("wins", "pairs"),
}
"""The metrics, as (summed outcomes of the clips, what they are divided by; None: their number)."""

Run = Mapping[str, Any]
"""The content of the JSON file of one run."""


@attrs.frozen
class Interval:
    """A mean over seeds and clips, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def estimate(
    runs: Sequence[Run], metric: str, *, minus: Sequence[Run] | None = None, draws: int = 1000
) -> Interval:
    """Return the mean of a metric over runs, or the mean of its paired difference.

    A resample draws seeds, and test clips that are the same for all runs; with `minus`, the two
    runs of a seed stay together. With one seed, the interval covers the clips only.

    Args:
        runs: runs of one model on one data set, one per seed.
        metric: a key of `METRICS`.
        minus: the runs of another model, with the same seeds in the same order.
        draws: number of resamples.
    """
    totals, counts = _clips(runs, metric)
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(totals), size=(draws, len(totals)))
    clips = rng.integers(totals.shape[1], size=(draws, totals.shape[1]))
    value, samples = _mean(totals, counts), _resampled(totals, counts, seeds, clips)
    if minus is not None:
        others = _clips(minus, metric)
        value, samples = value - _mean(*others), samples - _resampled(*others, seeds, clips)
    low, high = np.quantile(samples, (0.025, 0.975)).tolist()
    return Interval(value, low, high)


def _clips(runs: Sequence[Run], metric: str) -> tuple[np.ndarray, np.ndarray]:
    total, count = METRICS[metric]
    totals = np.array([run["clips"][total] for run in runs])
    counts = np.ones_like(totals) if count is None else [run["clips"][count] for run in runs]
    return totals, np.array(counts)


def _mean(totals: np.ndarray, counts: np.ndarray) -> float:
    return float((totals.sum(1) / counts.sum(1)).mean())


def _resampled(
    totals: np.ndarray, counts: np.ndarray, seeds: np.ndarray, clips: np.ndarray
) -> np.ndarray:
    values = totals[:, clips].sum(2) / counts[:, clips].sum(2)  # (seeds, draws)
    return np.take_along_axis(values.T, seeds, axis=1).mean(1)
