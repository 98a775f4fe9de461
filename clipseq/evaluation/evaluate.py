"""Evaluation of a model on the whole test split: retrieval, zero-shot, and order."""

import json
from collections.abc import Mapping
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from clipseq.data import MapDataset
from clipseq.evaluation.encoding import (
    Encoded,
    encode_captions,
    encode_clips,
    pooled_pair_scores,
    pooled_scores,
    sequence_pair_scores,
    sequence_scores,
)
from clipseq.evaluation.metrics import (
    RECALL_AT,
    Estimate,
    mean_estimate,
    order_counts,
    resamples,
    retrieval_estimates,
    retrieval_ranks,
    same_caption,
    zero_shot_correct,
)

if TYPE_CHECKING:
    from clipseq.model import CLIP

ZERO_SHOT = "zero-shot accuracy"
ORDER = "order accuracy"


@attrs.frozen
class Metric:
    """An estimate, and what guessing would get (None where that is not one number)."""

    estimate: Estimate
    chance: float | None = None


@attrs.frozen(eq=False)
class Evaluation:
    """What a model reached on a split.

    Attributes:
        split: the split.
        clips: how many clips it has.
        similarity: what the model compares sequences with, or "pooled cosine".
        metrics: score ("sequence" or "pooled") -> metric name -> value. Retrieval names tell the
            direction: "radar to text R@1". The model's own score comes first.
        absent: metric -> why the data set does not allow it.
        scores: score -> (clips, clips) matrix, row i a clip, column j a caption; not in the JSON.
    """

    split: str
    clips: int
    similarity: str
    metrics: Mapping[str, Mapping[str, Metric]]
    absent: Mapping[str, str]
    scores: Mapping[str, Float[Tensor, "N N"]]

    @property
    def own(self) -> Mapping[str, Metric]:
        """The metrics of the model's own score: by sequences where it uses them, else pooled."""
        return next(iter(self.metrics.values()))

    def to_json(self) -> dict[str, Any]:
        """Everything but the matrices, as plain numbers, strings and dictionaries."""
        return {
            "split": self.split,
            "clips": self.clips,
            "similarity": self.similarity,
            "metrics": {
                score: {
                    name: {
                        "value": metric.estimate.value,
                        "interval_95": [metric.estimate.low, metric.estimate.high],
                        "count": metric.estimate.count,
                        "chance": metric.chance,
                    }
                    for name, metric in metrics.items()
                }
                for score, metrics in self.metrics.items()
            },
            "absent": dict(self.absent),
        }

    def write(self, path: Path) -> None:
        """Write `to_json` to `path`."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def evaluate(
    model: "CLIP",
    dataset: MapDataset,
    *,
    split: str = "test",
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """Evaluate `model` on all clips of one split.

    Every clip is scored with every caption of the split (not within batches); a caption that two
    clips share counts as a hit for both, and so do captions that are one text to the model (see
    `CLIP.caption_groups`). Intervals are 95 % bootstrap intervals (percentile) over clips, from the
    same seeded draws for every metric.

    Args:
        model: a CLIP; it is put into eval mode, and back.
        dataset: the data set, all splits.
        split: what to evaluate on.
        draws: bootstrap resamples.
        seed: of the bootstrap.
        batch_size: clips that go through the tower together; changes nothing but memory.

    Raises:
        DataError: the split has no clip.
    """
    clips = dataset.subset(split)
    training = model.training
    model.eval()
    try:
        return _evaluate(model, dataset, clips, split, draws, seed, batch_size)
    finally:
        model.train(training)


def _evaluate(
    model: "CLIP",
    dataset: MapDataset,
    clips: MapDataset,
    split: str,
    draws: int,
    seed: int,
    batch_size: int,
) -> Evaluation:
    captions = clips.captions
    radar = encode_clips(model, clips, batch_size=batch_size)
    text = encode_captions(model, captions)
    scores = _all_scores(model, radar, text)
    samples = resamples(len(clips), draws=draws, seed=seed)
    hits = same_caption(model.caption_groups(captions).tolist())
    metrics: dict[str, dict[str, Metric]] = {}
    for score, matrix in scores.items():
        found = metrics[score] = {}
        for direction, queries in (("radar to text", matrix), ("text to radar", matrix.T)):
            estimates = retrieval_estimates(retrieval_ranks(queries, hits), samples)
            chances = _chance_recall(hits.sum(dim=1).tolist(), len(captions))
            for name, estimate in estimates.items():
                found[f"{direction} {name}"] = Metric(estimate, chances.get(name))
    absent = {}
    for name, measure in ((ZERO_SHOT, _zero_shot), (ORDER, _order)):
        try:
            results = measure(model, dataset, clips, radar, scores, draws, seed)
        except _Absent as reason:
            absent[name] = str(reason)
            continue
        for score, metric in results.items():
            metrics[score][name] = metric
    similarity = "pooled cosine"
    if radar.sequences is not None:
        similarity = model.config.sequence_similarity_type
    return Evaluation(split, len(clips), similarity, metrics, absent, scores)


class _Absent(Exception):
    """The data set does not hold what a metric needs."""


def _zero_shot(
    model: "CLIP",
    dataset: MapDataset,
    clips: MapDataset,
    radar: Encoded,
    scores: Mapping[str, Tensor],
    draws: int,
    seed: int,
) -> dict[str, Metric]:
    if "zeroshot" not in dataset.splits:
        raise _Absent("the data set has no split 'zeroshot' (clips of one labelled action)")
    one_action = dataset.subset("zeroshot")
    classes = list(dataset.class_captions)
    if len(classes) < 2:
        raise _Absent(f"class_captions names {len(classes)} classes; two are needed")
    labels = []
    for clip in (one_action[i] for i in range(len(one_action))):
        if clip.label is None:
            raise _Absent(f"clip {clip.id!r} of split 'zeroshot' has no label")
        labels.append(classes.index(clip.label))
    encoded = encode_clips(model, one_action)
    captions = encode_captions(model, [dataset.class_captions[name] for name in classes])
    samples = resamples(len(one_action), draws=draws, seed=seed)
    results = {}
    for score, matrix in _all_scores(model, encoded, captions).items():
        correct = zero_shot_correct(matrix, torch.tensor(labels))
        results[score] = Metric(mean_estimate(correct, samples), 1 / len(classes))
    return results


def _order(
    model: "CLIP",
    dataset: MapDataset,
    clips: MapDataset,
    radar: Encoded,
    scores: Mapping[str, Tensor],
    draws: int,
    seed: int,
) -> dict[str, Metric]:
    permuted = clips.permuted
    owner = torch.tensor([i for i, captions in enumerate(permuted) for _ in captions])
    if not len(owner):
        raise _Absent("no clip has permuted captions (the field `permuted`)")
    text = encode_captions(model, [caption for captions in permuted for caption in captions])
    own_text = encode_captions(model, clips.captions)
    every = torch.arange(len(clips))
    samples = resamples(len(clips), draws=draws, seed=seed)
    results = {}
    for score in scores:
        # Both through the same function, so that no difference in rounding takes sides.
        if score == "sequence":
            own = sequence_pair_scores(model, radar, own_text, every)
            others = sequence_pair_scores(model, radar, text, owner)
        else:
            own = pooled_pair_scores(radar, own_text, every)
            others = pooled_pair_scores(radar, text, owner)
        counts = order_counts(own, others, owner)
        estimate = mean_estimate(counts.wins, samples, pairs=counts.pairs)
        results[score] = Metric(estimate, 0.5)
    return results


def _all_scores(model: "CLIP", radar: Encoded, text: Encoded) -> dict[str, Tensor]:
    scores = {}
    if radar.sequences is not None:
        scores["sequence"] = sequence_scores(model, radar, text)
    scores["pooled"] = pooled_scores(radar, text)
    return scores


def _chance_recall(hits: list[int], gallery: int) -> dict[str, float]:
    # A random order has no hit among its first k with the probability C(n - h, k) / C(n, k).
    return {
        f"R@{k}": sum(1 - comb(gallery - h, k) / comb(gallery, k) for h in hits) / len(hits)
        for k in RECALL_AT
        if k <= gallery
    }
