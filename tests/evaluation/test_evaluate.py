"""An evaluation against the model asked pair by pair."""

import json
import math

import attrs
import numpy as np
import pytest
import torch

from clipseq import CLIP
from clipseq.data import MapDataset, collate, simulate
from clipseq.encoders import train_tokenizer
from clipseq.errors import DataError
from clipseq.evaluation import as_text, evaluate, evaluation_table
from clipseq.evaluation.encoding import (
    Encoded,
    encode_captions,
    encode_clips,
    pooled_scores,
    sequence_scores,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> MapDataset:
    shares = {"train": 0.1, "val": 0.1, "test": 0.6, "zeroshot": 0.2}
    folder = tmp_path_factory.mktemp("evaluate") / "data"
    clips = list(simulate(folder, 24, seconds=5.0, split_shares=shares))
    # Two clips of one caption: each is a hit for the other.
    test = [i for i, clip in enumerate(clips) if clip.split == "test"]
    twin = clips[test[0]]
    clips[test[1]] = attrs.evolve(
        clips[test[1]], caption=twin.caption, permuted=twin.permuted, actions=(), spans=()
    )
    captions = {clip.label: clip.caption for clip in clips if clip.label}
    return MapDataset.from_clips(clips, frame_rate=16.0, class_captions=captions)


def model(dataset: MapDataset, **options) -> CLIP:
    torch.manual_seed(1)
    return CLIP(
        {"views": dataset.views, "patch_frames": 8},
        transformer_width=8,
        transformer_layers=1,
        transformer_heads=2,
        context_length=200,
        **options,
    )


def score(clip_model: CLIP, clip, captions: list[str], kind: str) -> list[float]:
    """The scores of one clip with captions, by one call."""
    batch = collate([clip])
    with torch.no_grad():
        if kind == "sequence":
            lengths = batch["radar_lengths"]
            scores = clip_model.similarity(batch["radar"], captions, radar_lengths=lengths)
            return scores[0].tolist()
        radar, text = clip_model(batch["radar"], captions, radar_lengths=batch["radar_lengths"])
        return torch.cosine_similarity(radar, text).tolist()


@pytest.mark.parametrize("sequences", [True, False])
def test_every_metric_equals_the_slow_one(dataset, sequences):
    clip_model = model(dataset, use_sequence_similarity=sequences).train()
    found = evaluate(clip_model, dataset, batch_size=4)
    assert clip_model.training
    clip_model.eval()
    clips = list(dataset.subset("test"))
    captions = [clip.caption for clip in clips]
    assert list(found.metrics) == (["sequence", "pooled"] if sequences else ["pooled"])
    assert found.own is found.metrics["sequence" if sequences else "pooled"]
    assert found.similarity == ("combined" if sequences else "pooled cosine")
    for kind, metrics in found.metrics.items():
        matrix = np.array([score(clip_model, clip, captions, kind) for clip in clips])
        np.testing.assert_allclose(found.scores[kind].numpy(), matrix, atol=2e-6)
        # ranks, from the evaluation's own matrix, so that rounding decides no tie
        own = found.scores[kind].numpy()
        for direction, queries in (("radar to text", own), ("text to radar", own.T)):
            ranks = []
            for i, row in enumerate(queries):
                hits = [j for j, caption in enumerate(captions) if caption == captions[i]]
                best = max(row[j] for j in hits)
                ranks.append(1 + sum(row[j] >= best for j in range(len(row)) if j not in hits))
            for k in (1, 5, 10):
                expected = sum(rank <= k for rank in ranks) / len(ranks)
                assert metrics[f"{direction} R@{k}"].estimate.value == pytest.approx(expected)
            assert metrics[f"{direction} median rank"].estimate.value == np.median(ranks)
            assert metrics[f"{direction} MRR"].estimate.value == pytest.approx(
                np.mean([1 / rank for rank in ranks])
            )
        pairs = [
            (score(clip_model, clip, [clip.caption], kind)[0], other)
            for clip in clips
            for other in score(clip_model, clip, list(clip.permuted), kind)
        ]
        clear = [(a, b) for a, b in pairs if abs(a - b) > 4e-6]
        right = sum(a > b for a, b in clear)
        estimate = metrics["order accuracy"].estimate
        assert estimate.count == len(pairs)
        assert right / len(pairs) <= estimate.value + 1e-9
        assert estimate.value <= (right + len(pairs) - len(clear)) / len(pairs) + 1e-9
        names = list(dataset.class_captions)
        told = [dataset.class_captions[name] for name in names]
        one_action = list(dataset.subset("zeroshot"))
        best = [names[int(np.argmax(score(clip_model, c, told, kind)))] for c in one_action]
        correct = np.mean([a == c.label for a, c in zip(best, one_action, strict=True)])
        assert metrics["zero-shot accuracy"].estimate.value == pytest.approx(correct)
        assert metrics["zero-shot accuracy"].chance == pytest.approx(1 / len(names))


def test_chance_is_what_shuffled_scores_get(dataset):
    found = evaluate(model(dataset, use_sequence_similarity=False), dataset)
    captions = [clip.caption for clip in dataset.subset("test")]
    rng = np.random.default_rng(0)
    hits = np.array([[a == b for b in captions] for a in captions])
    firsts = []
    for _ in range(400):
        order = rng.permuted(np.tile(np.arange(len(captions)), (len(captions), 1)), axis=1)
        firsts.append([np.argmax(hits[i, order[i]]) for i in range(len(captions))])
    for k in (1, 5, 10):
        chance = found.own[f"radar to text R@{k}"].chance
        assert chance == pytest.approx((np.array(firsts) < k).mean(), abs=0.03)


def test_captions_that_are_one_text_to_the_model_are_one(dataset):
    captions = [clip.caption for clip in dataset]
    clip_model = model(dataset, tokenizer=train_tokenizer(captions, kind="word"))
    places = [i for i, clip in enumerate(dataset) if clip.split == "test"][:2]
    assert captions[places[0]] == captions[places[1]]
    clips = list(dataset)
    shouted = "  ".join(captions[places[1]].upper().split())
    clips[places[1]] = attrs.evolve(clips[places[1]], caption=shouted)
    spelled = MapDataset.from_clips(clips, frame_rate=16.0, class_captions=dataset.class_captions)
    found = evaluate(clip_model, spelled, draws=50)
    assert found.to_json() == evaluate(clip_model, dataset, draws=50).to_json()
    # Encoded once, so that rounding does not tell one from the other.
    for matrix in found.scores.values():
        assert torch.equal(matrix[:, 0], matrix[:, 1])
    # Byte by byte they differ, and only one of them is a hit.
    by_bytes = model(dataset)
    chances = [
        evaluate(by_bytes, data, draws=5).own["radar to text R@1"].chance
        for data in (spelled, dataset)
    ]
    assert chances[0] < chances[1]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_change_nothing(dataset, block):
    clip_model = model(dataset).eval()
    clips = dataset.subset("test")
    radar = encode_clips(clip_model, clips, batch_size=5)
    text = encode_captions(clip_model, clips.captions, batch_size=4)
    whole = sequence_scores(clip_model, radar, text)
    blocks = sequence_scores(clip_model, radar, text, block=block)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=2e-6)


def test_pooled_scores_are_not_rounded_by_autocast():
    radar, text = Encoded(torch.randn(5, 8), None), Encoded(torch.randn(6, 8), None)
    expected = torch.cosine_similarity(radar.pooled[:, None], text.pooled[None], dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pooled_scores(radar, text), expected)


def test_json_is_plain_and_repeatable(dataset, tmp_path):
    clip_model = model(dataset)
    found = evaluate(clip_model, dataset, draws=50, seed=3)
    found.write(tmp_path / "evaluation.json")
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["clips"] == len(dataset.subset("test"))
    first = written["metrics"]["sequence"]["radar to text R@1"]
    assert first.keys() == {"value", "interval_95", "count", "chance"}
    assert written == json.loads(
        json.dumps(evaluate(clip_model, dataset, draws=50, seed=3).to_json())
    )


def test_what_the_data_cannot_answer_is_absent_with_a_reason(dataset):
    bare = MapDataset.from_clips(
        attrs.evolve(clip, permuted=(), actions=(), spans=())
        for clip in dataset
        if clip.label is None
    )
    found = evaluate(model(dataset), bare)
    assert found.absent["order accuracy"].startswith("no clip has permuted captions")
    assert "zeroshot" in found.absent["zero-shot accuracy"]
    assert "order accuracy" not in found.own
    table = as_text(evaluation_table(found))
    assert "absent: no clip has permuted captions" in " ".join(table.split())
    assert json.loads(json.dumps(found.to_json()))["absent"] == found.absent


def test_a_zeroshot_clip_without_label_is_named(dataset):
    one_action = dataset.subset("zeroshot")[0].id
    unlabelled = MapDataset.from_clips(
        (attrs.evolve(clip, label=None) if clip.id == one_action else clip for clip in dataset),
        class_captions=dataset.class_captions,
    )
    found = evaluate(model(dataset), unlabelled)
    assert found.absent == {
        "zero-shot accuracy": f"clip {one_action!r} of split 'zeroshot' has no label"
    }
    assert "order accuracy" in found.own


def test_the_table_shows_value_interval_and_chance(dataset):
    found = evaluate(model(dataset), dataset)
    table = as_text(evaluation_table(found), width=120)
    metric = found.own["order accuracy"].estimate
    row = next(line for line in table.splitlines() if "order accuracy" in line)
    assert f"{metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]" in row
    assert "0.500" in row
    assert "sequence (combined)" in table
    assert not math.isnan(metric.value)


def test_a_split_that_is_not_there_is_named(dataset):
    with pytest.raises(DataError, match="tset"):
        evaluate(model(dataset), dataset, split="tset")
