"""Retrieval and order accuracy while training, on a bounded number of clips."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipseq.data import MapDataset
from clipseq.encoders.eval_mode import eval_mode
from clipseq.evaluation.evaluate import encode_exactly, hits_of
from clipseq.evaluation.metrics import order_counts, retrieval_ranks
from clipseq.evaluation.scores import (
    pooled_pair_scores,
    pooled_scores,
    sequence_pair_scores,
    sequence_scores,
)
from clipseq.retrieval import Encoded
from clipseq.retrieval.sides import sides

if TYPE_CHECKING:
    from clipseq.model import CLIP

CLIPS = 256
"""Largest number of clips that `validation_metrics` looks at."""

ORDERS = 5
"""Largest number of permuted captions of each clip: all of them, with up to three actions."""

RECALL = "R1"
ORDER_ACCURACY = "order_accuracy"


@torch.no_grad()
def validation_metrics(
    model: "CLIP", clips: MapDataset, *, batch_size: int = 64
) -> dict[str, float]:
    """Measure retrieval, and order accuracy if possible, as `evaluate` does but on fewer clips.

    At most `CLIPS` clips are used, evenly spaced, and of each at most its first `ORDERS` permuted
    captions. The scores are those that the model uses: of sequences if it compares them, and else
    of pooled features.

    Args:
        model: a CLIP; it is measured in eval mode, and then put back into its own.
        clips: the clips of the validation split.
        batch_size: clips that are encoded together.

    Returns:
        ``<x>_to_<y>_R1`` and ``<y>_to_<x>_R1``, R@1 in both directions by the names of the model's
        sides; ``R1``, their mean; and ``order_accuracy``, if y is text and a clip has permuted
        captions. All are shares, in [0, 1].

    Raises:
        DataError: the clips lack the modality of a side of the model.
        ValueError: a score is NaN.
    """
    clips = clips.spread(CLIPS)
    x, y = sides(model, clips)
    with eval_mode(model):
        one = encode_exactly(model, x.name, clips, batch_size)
        other = encode_exactly(model, y.name, clips, batch_size)
        scores = _scores(model, one, other).cpu()
        hits = hits_of(clips)
        names, directions = (x.name, y.name), {}
        for (query, gallery), matrix in ((names, scores), (names[::-1], scores.T)):
            found = (retrieval_ranks(matrix, hits) == 1).double().mean()
            directions[f"{query}_to_{gallery}_{RECALL}"] = float(found)
        metrics = directions | {RECALL: sum(directions.values()) / 2}
        if y.is_text and has_orders(clips):
            metrics[ORDER_ACCURACY] = _order_accuracy(model, clips, one, other, batch_size)
    return metrics


def has_orders(clips: MapDataset) -> bool:
    """Return whether a clip that `validation_metrics` looks at has permuted captions."""
    return any(clips.spread(CLIPS).permuted)


def _order_accuracy(
    model: "CLIP", clips: MapDataset, one: Encoded, other: Encoded, batch_size: int
) -> float:
    permuted = [captions[:ORDERS] for captions in clips.permuted]
    owner = torch.tensor([i for i, captions in enumerate(permuted) for _ in captions])
    every = [caption for captions in permuted for caption in captions]
    text = encode_exactly(model, model.names[1], every, batch_size)
    if one.steps is None:
        own = pooled_pair_scores(one, other, torch.arange(len(clips)))
        others = pooled_pair_scores(one, text, owner)
    else:
        own = sequence_pair_scores(model, one, other, torch.arange(len(clips)))
        others = sequence_pair_scores(model, one, text, owner)
    counts = order_counts(own, others, owner)
    return float(counts.wins.sum() / counts.pairs.sum())


def _scores(model: "CLIP", one: Encoded, other: Encoded) -> Tensor:
    if one.steps is None:
        return pooled_scores(one, other)
    return sequence_scores(model, one, other)
