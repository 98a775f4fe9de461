"""The two training runs that the demo compares, at two sizes."""

from pathlib import Path
from typing import Any

import attrs

from clipseq.config import structure
from clipseq.training import RunConfig

PLAIN = "plain CLIP"
"""Name of the model that compares pooled features only."""
COMBINED = "CLIP + combined"
"""Name of the model that also compares sequences, with `combined`."""


@attrs.frozen
class Size:
    """The amount of data and training in a demo.

    Attributes:
        clips: number of simulated clips.
        steps: optimizer steps of each run.
        batch_size: clips per step.
        width: width of both towers.
    """

    clips: int
    steps: int
    batch_size: int
    width: int


FULL = Size(clips=3000, steps=320, batch_size=64, width=96)
"""The size whose results are meaningful for the two models."""

SMALL = Size(clips=160, steps=20, batch_size=16, width=32)
"""The size for a quick look; its results are meaningless for the models."""


def demo_configs(out: Path, size: Size, *, seed: int = 0) -> dict[str, RunConfig]:
    """Return the configurations of the two runs, by name.

    They differ only in their run folder and in `use_sequence_similarity`.
    """
    model = {
        "transformer_width": size.width,
        "transformer_layers": 2,
        "transformer_heads": 4,
        "context_length": 64,
        "encoder_cfg": {"patch_frames": 5},
        "use_sequence_similarity": True,
    }
    training = {
        "max_steps": size.steps,
        "batch_size": size.batch_size,
        "learning_rate": 1e-3,
        "warmup_steps": max(1, size.steps // 10),
        "checkpoint_every": max(1, size.steps // 10),
        "threads": 1,
        "seed": seed,
    }

    def config(folder: str, **changes: Any) -> RunConfig:
        return structure(
            RunConfig,
            {
                "data": {"path": str((out / "data").resolve())},
                "model": model | changes,
                "tokenizer": {"kind": "word"},
                "training": training | {"out": str((out / folder).resolve())},
            },
        )

    return {PLAIN: config("plain", use_sequence_similarity=False), COMBINED: config("combined")}
