"""One run of the benchmark: train a model on a data set with one seed, and evaluate it."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.learning.datasets import Counts
from clipseq.config import structure
from clipseq.data import MapDataset
from clipseq.evaluation import evaluate
from clipseq.evaluation.metrics import order_counts, retrieval_ranks, same_caption
from clipseq.evaluation.scores import pooled_pair_scores, sequence_pair_scores
from clipseq.model import CLIP
from clipseq.training import RunConfig, train

PLAIN, COMBINED = "plain", "combined"
PARTS = ("global", "local", "attention", "temporal")
EQUAL_TIME, UNCHANGED = "plain, equal time", "plain, no augmentation"

MODELS: dict[str, dict[str, dict[str, Any]]] = {
    PLAIN: {"model": {"use_sequence_similarity": False}},
    **{part: {"model": {"sequence_similarity_type": part}} for part in PARTS},
    COMBINED: {},
    EQUAL_TIME: {"model": {"use_sequence_similarity": False}},
    UNCHANGED: {
        "model": {"use_sequence_similarity": False},
        "training": {"augment": {"strength": 0.0}},
    },
}
"""The models, with everything that each sets besides the data and `Size`, by table.

`EQUAL_TIME` is trained for as many steps as plain CLIP takes in the processor time of `COMBINED`.
`UNCHANGED` shows whether augmentation, which every other model has, is good for plain CLIP too.
"""


@attrs.frozen
class Size:
    """The amount of data and training, the same for every model.

    Attributes:
        counts: numbers of clips.
        steps: optimizer steps.
        batch_size: clips per step.
        width: width of both towers, which have two layers.
        patch_frames: frames per patch; None: as `train` chooses.
    """

    counts: Counts
    steps: int
    batch_size: int
    width: int
    patch_frames: int | None = None


FULL = Size(Counts(train=2000, val=150, test=300, simulated=3000), 320, 64, 96)
"""The size for a night."""

QUICK = attrs.evolve(FULL, batch_size=32)
"""A size of half the time and memory."""

TINY = Size(Counts(train=24, val=8, test=12, simulated=40), 2, 8, 16)
"""The size that shows in seconds that everything runs."""


def run_config(
    out: Path,
    size: Size,
    *,
    steps: int,
    seed: int,
    tables: Mapping[str, Mapping[str, Any]],
    signal: Mapping[str, Any],
) -> RunConfig:
    """Return the configuration of a run; its data set is passed to `train`.

    Args:
        out: run folder.
        size: the amount of data and training.
        steps: optimizer steps.
        seed: random seed of the weights and of the order of the clips.
        tables: options by table besides those of `size` (see `MODELS`).
        signal: options of the signal tower that belong to the data set (see `SIGNALS`).
    """
    towers: dict[str, Any] = {
        "transformer_width": size.width,
        "transformer_layers": 2,
        "transformer_heads": 4,
        "context_length": 64,
        "encoder_cfg": dict(signal),
    }
    if size.patch_frames is not None:
        towers["encoder_cfg"]["patch_frames"] = size.patch_frames
    return structure(
        RunConfig,
        {
            "data": {"path": str(out)},
            "model": {**towers, **tables.get("model", {})},
            "tokenizer": {"kind": "word"},
            "training": {
                "out": str(out),
                "max_steps": steps,
                "batch_size": size.batch_size,
                "learning_rate": 1e-3,
                "warmup_steps": max(1, steps // 10),
                "checkpoint_every": max(1, steps // 10),
                "threads": 1,
                "seed": seed,
                **tables.get("training", {}),
            },
        },
    )


def measure(
    dataset: MapDataset,
    size: Size,
    *,
    steps: int,
    seed: int,
    tables: Mapping[str, Mapping[str, Any]],
    signal: Mapping[str, Any],
) -> dict[str, Any]:
    """Train and evaluate one model; the options are those of `run_config`.

    Returns:
        Values that JSON can hold: the outcome of each test clip (see `outcomes`), the processor
        time and the wall-clock time of the training, validation included, and the mixing weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(
            Path(folder) / "run", size, steps=steps, seed=seed, tables=tables, signal=signal
        )
        cpu, wall = time.process_time(), time.monotonic()
        trained = train(config, dataset=dataset)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    loss = trained.sequence_loss_fn
    weights = {} if loss is None else getattr(loss.similarity_fn, "weights", {})
    return {
        "steps": steps,
        "seed": seed,
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(wall, 1),
        "weights": {name: round(float(weight), 4) for name, weight in weights.items()},
        "clips": outcomes(trained, dataset),
    }


def outcomes(model: CLIP, dataset: MapDataset) -> dict[str, list[float]]:
    """Return what the score that the model uses makes of each test clip.

    A caption is right for a clip if it describes the same actions in the same order, in whatever
    words: several wordings of a caption cannot be told apart from the signal.

    Returns:
        "to_text" and "to_signal": 1 if the best caption of a clip (or the best clip of a caption)
        is right, else 0; "wins" and "pairs": the permuted captions that score below the clip's own
        (a tie is one half), and all of them.
    """
    clips = dataset.subset("test")
    actions = [clips[i].actions for i in range(len(clips))]
    right = same_caption(actions)
    scores = next(iter(evaluate(model, dataset, draws=1).scores.values()))
    wins, pairs = _order(model, clips)
    return {
        "to_text": _first_is_right(scores, right),
        "to_signal": _first_is_right(scores.T, right),
        "wins": wins,
        "pairs": pairs,
    }


def _first_is_right(scores: Tensor, right: Tensor) -> list[float]:
    return (retrieval_ranks(scores, right) == 1).double().tolist()


@torch.no_grad()
def _order(model: CLIP, clips: MapDataset) -> tuple[Sequence[float], Sequence[float]]:
    x, y = model.names
    signals = model.encode(x, clips, progress=False, dtype=None)
    owner = torch.tensor([i for i, texts in enumerate(clips.permuted) for _ in texts])
    own = model.encode(y, clips.captions, progress=False, dtype=None)
    permuted = [text for texts in clips.permuted for text in texts]
    others = model.encode(y, permuted, progress=False, dtype=None)
    every = torch.arange(len(clips))
    if signals.steps is None:
        scores = [pooled_pair_scores(signals, *side) for side in ((own, every), (others, owner))]
    else:
        scores = [
            sequence_pair_scores(model, signals, *side) for side in ((own, every), (others, owner))
        ]
    counts = order_counts(*scores, owner)
    return counts.wins.tolist(), counts.pairs.tolist()
