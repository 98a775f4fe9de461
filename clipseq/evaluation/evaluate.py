"""Evaluation of a model on a whole split: retrieval, zero-shot accuracy, and order accuracy."""

import json
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipseq.data import MapDataset
from clipseq.data.clip import TEXT
from clipseq.encoders.eval_mode import eval_mode
from clipseq.engine.files import write_text
from clipseq.engine.options import check_kind, whole_number
from clipseq.evaluation.metrics import (
    RECALL_AT,
    Estimate,
    average_precision,
    mean_estimate,
    ndcg,
    order_counts,
    resamples,
    retrieval_estimates,
    retrieval_ranks,
    same_caption,
    zero_shot_correct,
)
from clipseq.evaluation.scores import (
    pooled_pair_scores,
    pooled_scores,
    sequence_pair_scores,
    sequence_scores,
)
from clipseq.retrieval import Encoded
from clipseq.retrieval.sides import Side, sides

if TYPE_CHECKING:
    from clipseq.model import CLIP

ZERO_SHOT = "zero-shot accuracy"
ORDER = "order accuracy"


@attrs.frozen
class Metric:
    """One number of an evaluation.

    Attributes:
        estimate: the value and its interval.
        section: part of a table that the metric belongs to, such as "radar to text".
        chance: expected value of random guesses; None if that is not a single number.
    """

    estimate: Estimate
    section: str
    chance: float | None = None


@attrs.frozen(eq=False)
class Confusion:
    """Counts of the clips of each class that were taken for each class.

    Attributes:
        classes: names of the classes.
        counts: (K, K) number of clips of class i (row) that were taken for class j (column).
    """

    classes: tuple[str, ...]
    counts: Int[Tensor, "K K"]


@attrs.frozen(eq=False)
class Evaluation:
    """Results of a model on a split.

    Attributes:
        split: the split.
        clips: number of clips in it.
        similarity: name of the similarity that the model compares sequences with, or "pooled
            cosine".
        metrics: score ("sequence" or "pooled") -> metric name -> value. Names of retrieval metrics
            begin with the direction: "radar to text R@1". The score that the model uses comes
            first.
        absent: metric -> reason why it cannot be computed for this model and data set.
        scores: score -> (clips, clips) matrix: row i is the x side of clip i, column j the y side
            of clip j. Not in the JSON.
        confusion: zero-shot classes by the score that the model uses; None without zero-shot
            accuracy. Not in the JSON.
    """

    split: str
    clips: int
    similarity: str
    metrics: Mapping[str, Mapping[str, Metric]]
    absent: Mapping[str, str]
    scores: Mapping[str, Float[Tensor, "N N"]]
    confusion: Confusion | None = None

    @property
    def own(self) -> Mapping[str, Metric]:
        """Metrics of the score that the model uses: by sequences if it compares them, or pooled."""
        return next(iter(self.metrics.values()))

    def to_json(self) -> dict[str, Any]:
        """Return everything except the matrices as plain numbers, strings and dictionaries."""
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
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")


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

    The x side of every clip is scored with the y side of every clip of the split, not only within
    batches. The two sides of a clip are hits for each other; so are those of two clips with the
    same caption, whatever its case and white space. The data set alone decides that: captions that
    differ stay different where the tokenizer makes the same ids of them, and then tie.
    Zero-shot and order accuracy require captions as the y side. Intervals are 95 % percentile
    bootstrap intervals over the clips, from the same seeded draws for every metric.

    Args:
        model: a CLIP. It is evaluated in eval mode; then each of its modules is put back into its
            own mode.
        dataset: the data set with all its splits.
        split: name of the split to evaluate on.
        draws: number of bootstrap resamples.
        seed: random seed of the bootstrap.
        batch_size: clips that are encoded together; affects memory only.

    Raises:
        DataError: the split has no clip, or the data set lacks the modality of a side of the model.
        TypeError: `model` is not a CLIP, `dataset` is not a data set, or a number is not whole.
        ValueError: a number is out of its range.
    """
    check_kind("dataset", dataset, MapDataset, "a MapDataset")
    draws = whole_number("draws", draws, least=1)
    seed = whole_number("seed", seed, most=2**63 - 1)
    batch_size = whole_number("batch_size", batch_size, least=1)
    clips = dataset.subset(split)
    x, y = sides(model, dataset)
    with eval_mode(model):
        encoded = encode_exactly(model, x.name, clips, batch_size)
        scores = _all_scores(model, encoded, encode_exactly(model, y.name, clips, batch_size))
        return _measured(
            _Split(model, x, y, dataset, clips, encoded, scores, draws, seed, batch_size), split
        )


@attrs.frozen(eq=False)
class _Split:
    """A split, encoded and scored, with everything that the metrics need."""

    model: "CLIP"
    x: Side
    y: Side
    dataset: MapDataset
    clips: MapDataset
    encoded: Encoded  # the x side
    scores: Mapping[str, Tensor]
    draws: int
    seed: int
    batch_size: int
    confusions: list[Confusion] = attrs.field(factory=list)

    def resamples(self, clips: MapDataset) -> Tensor:
        """Return the bootstrap samples of `clips`."""
        return resamples(len(clips), draws=self.draws, seed=self.seed)


class _Absent(Exception):
    """The reason why a metric cannot be computed for this model and data set."""


def _measured(given: _Split, split: str) -> Evaluation:
    metrics = _retrieval(given)
    absent = {}
    for name, measure in ((ZERO_SHOT, _zero_shot), (ORDER, _order)):
        try:
            if not given.y.is_text:
                raise _Absent(f"the y side of the model must be text, got {given.y.name!r}")
            results = measure(given)
        except _Absent as reason:
            absent[name] = str(reason)
            continue
        for score, metric in results.items():
            metrics[score][name] = metric
    similarity = "pooled cosine"
    if given.encoded.steps is not None:
        similarity = given.model.config.sequence_similarity_type
    # The score that the model uses comes first.
    confusion = next(iter(given.confusions), None)
    return Evaluation(split, len(given.clips), similarity, metrics, absent, given.scores, confusion)


def _retrieval(given: _Split) -> dict[str, dict[str, Metric]]:
    samples = given.resamples(given.clips)
    hits = hits_of(given.clips)
    chances = _chance_recall(hits.sum(dim=1).tolist(), len(given.clips))
    metrics: dict[str, dict[str, Metric]] = {}
    for score, matrix in given.scores.items():
        found = metrics[score] = {}
        for query, gallery, queries in (
            (given.x, given.y, matrix),
            (given.y, given.x, matrix.T),
        ):
            section = f"{query.name} to {gallery.name}"
            estimates = retrieval_estimates(retrieval_ranks(queries, hits), samples)
            # With several hits for a query, these look at all of them, and the others at the best.
            estimates["MAP"] = mean_estimate(average_precision(queries, hits), samples)
            estimates["nDCG@10"] = mean_estimate(ndcg(queries, hits), samples)
            for name, estimate in estimates.items():
                found[f"{section} {name}"] = Metric(estimate, section, chances.get(name))
    return metrics


def hits_of(clips: MapDataset) -> Bool[Tensor, "N N"]:
    """Return a matrix that is True at (i, j) if clips i and j are hits for each other."""
    keys: Sequence[Hashable] = range(len(clips))
    if TEXT in clips.modalities:
        keys = [_folded(caption) for caption in clips.captions]
    return same_caption(keys)


def _folded(caption: str) -> str:
    """Return a caption without the differences of spelling that change no word."""
    return " ".join(unicodedata.normalize("NFC", caption).casefold().split())


def _zero_shot(given: _Split) -> dict[str, Metric]:
    if "zeroshot" not in given.dataset.splits:
        raise _Absent("the data set has no split 'zeroshot' (clips of one labelled action)")
    one_action = given.dataset.subset("zeroshot")
    class_captions = given.dataset.class_captions
    # Classes of one caption are one class: no score could tell them apart.
    distinct: dict[str, str] = {}
    for caption in class_captions.values():
        distinct.setdefault(_folded(caption), caption)
    classes = list(distinct)
    if len(classes) < 2:
        raise _Absent(
            f"class_captions must name at least two captions that differ, got {len(classes)}"
        )
    labels = []
    for clip in (one_action[i] for i in range(len(one_action))):
        if clip.label is None:
            raise _Absent(f"clip {clip.id!r} of split 'zeroshot' has no label")
        labels.append(classes.index(_folded(class_captions[clip.label])))
    encoded = encode_exactly(given.model, given.x.name, one_action, given.batch_size)
    captions = encode_exactly(given.model, given.y.name, list(distinct.values()), given.batch_size)
    samples = given.resamples(one_action)
    results = {}
    for score, matrix in _all_scores(given.model, encoded, captions).items():
        correct = zero_shot_correct(matrix, torch.tensor(labels))
        given.confusions.append(_confused(matrix, labels, classes, class_captions))
        results[score] = Metric(mean_estimate(correct, samples), ZERO_SHOT, 1 / len(classes))
    return results


def _confused(
    scores: Float[Tensor, "N K"], labels: list[int], classes: list[str], names: Mapping[str, str]
) -> Confusion:
    """Count the classes that clips were taken for; a tie counts against the right class."""
    right = torch.nn.functional.one_hot(torch.tensor(labels), len(classes)).bool()
    others = scores.masked_fill(right, -torch.inf)
    taken = torch.where(scores[right] > others.amax(1), torch.tensor(labels), others.argmax(1))
    counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    counts.index_put_((torch.tensor(labels), taken), torch.tensor(1), accumulate=True)
    found: dict[str, str] = {}
    for name, caption in names.items():  # the first class of a caption gives its name
        found.setdefault(_folded(caption), name)
    return Confusion(tuple(found[key] for key in classes), counts)


def _order(given: _Split) -> dict[str, Metric]:
    permuted = given.clips.permuted
    owner = torch.tensor([i for i, captions in enumerate(permuted) for _ in captions])
    if not len(owner):
        raise _Absent("no clip has permuted captions (the field `permuted`)")
    model, x, name, size = given.model, given.encoded, given.y.name, given.batch_size
    text = encode_exactly(model, name, [c for captions in permuted for c in captions], size)
    own_text = encode_exactly(model, name, given.clips.captions, size)
    every = torch.arange(len(given.clips))
    samples = given.resamples(given.clips)
    results = {}
    for score in given.scores:
        # Both go through the same function, so that a difference in rounding favours neither.
        if score == "sequence":
            own = sequence_pair_scores(model, x, own_text, every)
            others = sequence_pair_scores(model, x, text, owner)
        else:
            own = pooled_pair_scores(x, own_text, every)
            others = pooled_pair_scores(x, text, owner)
        counts = order_counts(own, others, owner)
        estimate = mean_estimate(counts.wins, samples, pairs=counts.pairs)
        results[score] = Metric(estimate, ORDER, 0.5)
    return results


def encode_exactly(
    model: "CLIP", name: str, items: MapDataset | Sequence[str], batch_size: int
) -> Encoded:
    """Encode items for scores that equal those of the model: on its device, unrounded."""
    device = next(model.parameters()).device
    return model.encode(
        name, items, batch_size=batch_size, progress=False, device=device, dtype=None
    )


def _all_scores(model: "CLIP", x: Encoded, y: Encoded) -> dict[str, Tensor]:
    scores = {}
    if x.steps is not None:
        scores["sequence"] = sequence_scores(model, x, y)
    scores["pooled"] = pooled_scores(x, y)
    return scores


def _chance_recall(hits: list[int], gallery: int) -> dict[str, float]:
    # A random order has no hit among its first k with probability C(n - h, k) / C(n, k).
    return {
        f"R@{k}": sum(1 - comb(gallery - h, k) / comb(gallery, k) for h in hits) / len(hits)
        for k in RECALL_AT
        if k <= gallery
    }
