"""What lies where in a run folder."""

from pathlib import Path

import attrs


@attrs.frozen
class RunFolder:
    """Paths of a run: its config, its model, its checkpoints and its records."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration as resolved; `clipseq train --resume` reads it."""
        return self.root / "config.toml"

    @property
    def model(self) -> Path:
        """The trained model, for `CLIP.from_pretrained`; there once training is done."""
        return self.root / "model"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, there from the first step on: what was learned is in its token ids."""
        return self.root / "tokenizer"

    @property
    def last(self) -> Path:
        """Checkpoint of the last save: model, optimizer, schedule, progress."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the lowest validation loss."""
        return self.root / "checkpoints" / "best.ckpt"

    @property
    def metrics(self) -> Path:
        """One row per optimizer step."""
        return self.root / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files: `tensorboard --logdir`."""
        return self.root / "tensorboard"

    @property
    def data(self) -> Path:
        """The data set, where the run simulated its own."""
        return self.root / "data"

    @property
    def evaluation(self) -> Path:
        """Written by `clipseq evaluate`."""
        return self.root / "evaluation.json"
