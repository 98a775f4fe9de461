"""The optimizer steps of a run, also of one that is resumed with another batch size."""

import attrs

from clipseq.training.checkpoint import Checkpoint
from clipseq.training.config import TrainingConfig


@attrs.frozen
class Schedule:
    """The steps of a run, and the place of each in a run that had its batch size all along.

    Steps are counted from the start of the run, whatever their batch size. A run of epochs that is
    resumed with another batch size has steps left for the epochs that are left. Learning rate and
    clips depend on a step's place. Without such a change, a step's place is the step.

    Attributes:
        steps: number of the last step.
        shift: place of a step, minus the step.
        steps_per_epoch: steps that pass over all clips once; it need not be whole.
    """

    steps: int
    shift: int
    steps_per_epoch: float

    @classmethod
    def of(
        cls, options: TrainingConfig, batches_per_epoch: int, checkpoint: Checkpoint | None
    ) -> "Schedule":
        """Return the schedule of a run that begins, or continues from `checkpoint`."""
        per_epoch = batches_per_epoch / options.accumulate
        shift = 0
        if checkpoint is not None and options.max_steps is None:
            shift = round(checkpoint["epochs"] * per_epoch) - checkpoint["global_step"]
        return cls(options.steps(batches_per_epoch) - shift, shift, per_epoch)

    def place(self, step: int) -> int:
        """Return the place of a step."""
        return step + self.shift

    def epochs(self, step: int) -> float:
        """Return the passes over the clips after a step."""
        return self.place(step) / self.steps_per_epoch
