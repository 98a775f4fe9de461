"""Selection: the best validation of a run by the monitored metric, and when to stop early."""

import math
from collections.abc import Mapping
from typing import Any

import attrs

from clipseq.data import MapDataset
from clipseq.errors import ConfigError
from clipseq.evaluation.validation import ORDER_ACCURACY, has_orders

LOWER_IS_BETTER = {"loss_total"}
"""The metrics whose lowest value is the best."""


@attrs.frozen
class Selection:
    """The best validation so far.

    Attributes:
        monitor: the metric.
        value: its best value; None before the first validation.
        step: optimizer step of that validation.
        since: number of validations after it.
    """

    monitor: str
    value: float | None = None
    step: int = 0
    since: int = 0

    @classmethod
    def resume(cls, monitor: str, saved: Any) -> "Selection":
        """Return the selection of a checkpoint, or a new one if that had another metric."""
        if isinstance(saved, Mapping) and saved.get("monitor") == monitor:
            return cls(**saved)
        return cls(monitor)

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Return whether a validation is at least as good as the best.

        The later one of two equals is better: it has seen more clips, at a lower learning rate.
        """
        value = metrics[self.monitor]
        if self.value is None or math.isnan(value):
            return self.value is None
        return value <= self.value if self.monitor in LOWER_IS_BETTER else value >= self.value

    def after(self, step: int, value: float | None, *, improved: bool) -> "Selection":
        """Return the selection after a validation.

        Args:
            step: optimizer step of the validation.
            value: value of the metric; None in a process that does not know it.
            improved: whether the validation is the best so far.
        """
        if improved:
            return attrs.evolve(self, value=value, step=step, since=0)
        return attrs.evolve(self, since=self.since + 1)

    def is_over(self, patience: int | None) -> bool:
        """Return whether the run stops early."""
        return patience is not None and self.since >= patience

    def describe(self) -> str:
        """Say why the weights of `step` were kept."""
        order = "lowest" if self.monitor in LOWER_IS_BETTER else "highest"
        return (
            f"step {self.step}, with the {order} val_{self.monitor} of all validations, "
            f"{self.value:.4g}"
        )


def check_monitor(monitor: str, validation: MapDataset | None, *, text: bool) -> None:
    """Raise ConfigError if the validation clips cannot give the monitored metric.

    Args:
        monitor: the metric.
        validation: the validation clips; None if there are none, and nothing is monitored.
        text: whether the y side of the model is text.
    """
    if monitor != ORDER_ACCURACY or validation is None:
        return
    if not text or not has_orders(validation):
        raise ConfigError(
            "training.monitor must be a metric of the split 'val', got 'order_accuracy' for "
            "clips without permuted captions; monitor 'R1' or 'loss_total'"
        )
