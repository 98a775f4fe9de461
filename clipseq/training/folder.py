"""The layout of a run folder."""

import shlex
from pathlib import Path

import attrs


@attrs.frozen
class RunFolder:
    """The paths of a run: its configuration, model, checkpoints and records."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, which `clipseq train --resume` reads."""
        return self.root / "config.toml"

    @property
    def model(self) -> Path:
        """The best model, for `CLIP.from_pretrained`; it exists once training is finished."""
        return self.root / "model"

    @property
    def model_last(self) -> Path:
        """The model of the last step; it exists if there was a validation to choose the best by."""
        return self.root / "model-last"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, written before the first step, since weights depend on its token ids."""
        return self.root / "tokenizer"

    @property
    def last(self) -> Path:
        """The last checkpoint; see `training.checkpoint` for its content."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation, by the metric `training.monitor`."""
        return self.checkpoints / "best.ckpt"

    @property
    def metrics(self) -> Path:
        """A table with one row per optimizer step."""
        return self.root / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files, for `tensorboard --logdir`."""
        return self.root / "tensorboard"

    @property
    def data(self) -> Path:
        """The data set, if the run simulated its own."""
        return self.root / "data"

    @property
    def processes(self) -> Path:
        """Notes of the run's processes, if several train; see `training.launch.presence`."""
        return self.root / ".processes"

    @property
    def checkpoints(self) -> Path:
        """The folder of `last` and `best`."""
        return self.root / "checkpoints"

    @property
    def resume_command(self) -> str:
        """The command that continues the run, quoted for a shell."""
        return shlex.join(["clipseq", "train", "--resume", str(self.root)])

    @property
    def lock(self) -> Path:
        """The lock that a training holds; see `training.lock`."""
        return self.root / ".lock"

    @property
    def evaluation(self) -> Path:
        """The result of `clipseq evaluate`."""
        return self.root / "evaluation.json"

    @property
    def evaluation_last(self) -> Path:
        """The result of `clipseq evaluate --checkpoint last`."""
        return self.root / "evaluation-last.json"
