"""Evaluations equal the model's scores pair by pair, for radar with text and for two signals."""

import contextlib
import json
import math

import attrs
import numpy as np
import pytest
import torch

from clipseq import CLIP
from clipseq.data import Clip, MapDataset, collate, simulate
from clipseq.encoders import train_tokenizer
from clipseq.errors import DataError
from clipseq.evaluation import Metric, as_text, evaluate, evaluation_table, metric_table
from clipseq.evaluation.metrics import Estimate
from clipseq.evaluation.scores import pooled_scores, sequence_scores
from clipseq.retrieval import Encoded
from clipseq.retrieval.sides import collate_for


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> MapDataset:
    shares = {"train": 0.1, "val": 0.1, "test": 0.6, "zeroshot": 0.2}
    folder = tmp_path_factory.mktemp("evaluate") / "data"
    clips = list(simulate(folder, 24, seconds=5.0, split_shares=shares))
    # Two clips have the same caption, so each is a hit for the other.
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
    """Score one clip with captions by one call."""
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
        # Ranks come from the evaluation's own matrix, so that rounding does not decide ties.
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
        class_captions = [dataset.class_captions[name] for name in names]
        one_action = list(dataset.subset("zeroshot"))
        best = [
            names[int(np.argmax(score(clip_model, c, class_captions, kind)))] for c in one_action
        ]
        correct = np.mean([a == c.label for a, c in zip(best, one_action, strict=True)])
        assert metrics["zero-shot accuracy"].estimate.value == pytest.approx(correct)
        assert metrics["zero-shot accuracy"].chance == pytest.approx(1 / len(names))


def test_chance_equals_the_mean_of_shuffled_scores(dataset):
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


def test_case_and_white_space_make_no_other_caption(dataset):
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
    # They are encoded once, so that rounding cannot distinguish them.
    for matrix in found.scores.values():
        assert torch.equal(matrix[:, 0], matrix[:, 1])
    # What counts as a hit does not depend on the model, so models can be compared.
    by_bytes = model(dataset)
    chances = [
        evaluate(by_bytes, data, draws=5).own["radar to text R@1"].chance
        for data in (spelled, dataset)
    ]
    assert chances[0] == chances[1] == found.own["radar to text R@1"].chance


def test_captions_of_unknown_words_tie_and_are_no_hits_for_each_other(dataset):
    clips = [
        attrs.evolve(clip, caption=f"jumps{i}", permuted=(), actions=(), spans=())
        for i, clip in enumerate(dataset.subset("test"))
    ]
    clip_model = model(dataset, tokenizer=train_tokenizer(["walks", "sits"], kind="word"))
    assert len(set(clip_model.caption_groups([clip.caption for clip in clips]).tolist())) == 1
    found = evaluate(clip_model, MapDataset.from_clips(clips), draws=5).own
    assert found["radar to text R@1"].chance == pytest.approx(1 / len(clips))
    # Every caption has the same score with a clip, so the right one comes last.
    assert found["radar to text R@1"].estimate.value == 0.0
    assert found["radar to text median rank"].estimate.value == len(clips)


def test_classes_of_one_caption_are_one_class(dataset):
    clips = [
        attrs.evolve(clip, label="twin" if i % 2 else clip.label) if clip.label == label else clip
        for label in [next(clip.label for clip in dataset if clip.label)]
        for i, clip in enumerate(dataset)
    ]
    classes = dict(dataset.class_captions)
    first = next(clip.label for clip in dataset if clip.label)
    twice = MapDataset.from_clips(clips, class_captions=classes | {"twin": classes[first].upper()})
    once = evaluate(model(dataset), dataset, draws=5).own["zero-shot accuracy"]
    assert evaluate(model(dataset), twice, draws=5).own["zero-shot accuracy"] == once
    alone = MapDataset.from_clips(
        [attrs.evolve(clip, label=clip.label and "a") for clip in dataset],
        class_captions={"a": "walks", "b": "Walks"},
    )
    assert (
        "at least two captions that differ, got 1"
        in (evaluate(model(dataset), alone, draws=5).absent["zero-shot accuracy"])
    )


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_keeps_its_own_mode(dataset, fails):
    clip_model = model(dataset).train()
    clip_model.x_encoder.eval()
    clip_model.y_encoder.transformer.eval()
    before = {name: module.training for name, module in clip_model.named_modules()}
    assert len(set(before.values())) == 2
    seen = []

    def look(module, *_):
        seen.append(module.training)
        if fails:
            raise ValueError("broken")

    clip_model.y_encoder.register_forward_hook(look)
    with pytest.raises(ValueError, match="broken") if fails else contextlib.nullcontext():
        evaluate(clip_model, dataset, draws=5)
    assert seen
    assert not any(seen)
    assert {name: module.training for name, module in clip_model.named_modules()} == before


def test_no_split_is_encoded_in_larger_batches_than_asked_for(dataset):
    clip_model, sizes = model(dataset), []
    clip_model.x_encoder.register_forward_hook(lambda _, inputs, out: sizes.append(len(out[0])))
    evaluate(clip_model, dataset, draws=5, batch_size=2)
    assert max(sizes) == 2
    assert sum(sizes) == len(dataset.subset("test")) + len(dataset.subset("zeroshot"))


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_change_nothing(dataset, block):
    clip_model = model(dataset).eval()
    clips = dataset.subset("test")
    radar = clip_model.encode("radar", clips, batch_size=5, dtype=None)[:7]
    text = clip_model.encode("text", clips.captions, batch_size=4, dtype=None)[:5]
    whole = sequence_scores(clip_model, radar, text)
    blocks = sequence_scores(clip_model, radar, text, block=block)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=2e-6)


def test_pooled_scores_are_not_rounded_by_autocast():
    radar, text = Encoded(torch.randn(5, 8)), Encoded(torch.randn(6, 8))
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


def test_metrics_that_the_data_does_not_allow_are_absent_with_a_reason(dataset):
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


def test_an_unknown_split_is_named(dataset):
    with pytest.raises(DataError, match="tset"):
        evaluate(model(dataset), dataset, split="tset")


def pairs(count=7, *, captions=True, zeroshot=True) -> MapDataset:
    """Return clips of audio with motion; two of the test split share a caption."""
    rng = np.random.default_rng(3)
    clips = [
        Clip(
            id=f"{i}",
            signal={
                "mel": rng.normal(size=(4, 16 + i)).astype(np.float32),
                "pitch": rng.normal(size=(2, 16 + i)).astype(np.float32),
            },
            paired={"joints": rng.normal(size=(6, 24 - i)).astype(np.float32)},
            caption=f"caption {max(i, 1)}" if captions else "",
            permuted=(f"caption {i} again",) if captions else (),
            split="zeroshot" if zeroshot and i >= count - 2 else "test",
            label="ab"[i % 2] if zeroshot and i >= count - 2 else None,
        )
        for i in range(count)
    ]
    classes = {"a": "one", "b": "another"} if zeroshot else None
    return MapDataset.from_clips(
        clips, modality="audio", paired_modality="motion", class_captions=classes
    )


SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
AUDIO = {"name": "audio", "views": {"mel": 4, "pitch": 2}, "patch_frames": 4}
MOTION = {"tower": "signal", "name": "motion", "views": {"joints": 6}, "patch_frames": 4}


@pytest.mark.parametrize("captions", [True, False])
@pytest.mark.parametrize("sequences", [True, False])
def test_two_signals_are_retrieved_both_ways_by_identity_and_equal_captions(captions, sequences):
    torch.manual_seed(1)
    clip_model = CLIP(AUDIO, MOTION, use_sequence_similarity=sequences, **SIZE).eval()
    data = pairs(captions=captions)
    found = evaluate(clip_model, data, batch_size=2)
    clips = list(data.subset("test"))
    matrix = np.zeros((len(clips), len(clips)))
    for i, one in enumerate(clips):
        for j, two in enumerate(clips):
            batch = collate(
                [attrs.evolve(one, paired=two.paired)], modality="audio", paired_modality="motion"
            )
            with torch.no_grad():
                matrix[i, j] = clip_model.similarity(batch["audio"], batch["motion"])
    own = next(iter(found.scores.values())).numpy()
    np.testing.assert_allclose(own, matrix, atol=2e-6)
    for direction, queries in (("audio to motion", own), ("motion to audio", own.T)):
        ranks = []
        for i, row in enumerate(queries):
            hits = {i} | ({0, 1} if captions and i < 2 else set())
            best = max(row[j] for j in hits)
            ranks.append(1 + sum(row[j] >= best for j in range(len(row)) if j not in hits))
        assert found.own[f"{direction} R@1"].estimate.value == np.mean(np.array(ranks) == 1)
        assert found.own[f"{direction} median rank"].estimate.value == np.median(ranks)
        assert found.own[f"{direction} R@1"].section == direction
    hits = 7 / 5 if captions else 1.0
    assert found.own["audio to motion R@1"].chance == pytest.approx(hits / 5)
    assert found.absent.keys() == {"zero-shot accuracy", "order accuracy"}
    for reason in found.absent.values():
        assert reason == "the y side of the model must be text, got 'motion'"


@pytest.mark.parametrize("name", ["audio", "motion"])
def test_either_signal_of_a_pair_is_evaluated_with_its_captions(name):
    data = pairs()
    tower = AUDIO | {"views": {"mel": 4}} if name == "audio" else MOTION
    torch.manual_seed(1)
    clip_model = CLIP(tower, **SIZE)
    found = evaluate(clip_model, data, draws=20)
    maps = [{"mel": c.signal["mel"]} if name == "audio" else c.paired for c in data]
    alone = MapDataset.from_clips(
        (attrs.evolve(c, signal=m, paired={}) for c, m in zip(data, maps, strict=True)),
        modality=name,
        class_captions=data.class_captions,
    )
    assert found.to_json() == evaluate(clip_model, alone, draws=20).to_json()
    assert not found.absent
    assert f"{name} to text R@1" in found.own


def test_text_may_be_the_x_side_and_lacks_zero_shot_and_order():
    data = pairs()
    clip_model = CLIP({"tower": "text"}, MOTION, **SIZE)
    found = evaluate(clip_model, data, draws=20)
    assert "text to motion R@1" in found.own
    assert found.absent.keys() == {"zero-shot accuracy", "order accuracy"}


@pytest.mark.parametrize(
    ("towers", "captions", "message"),
    [
        (
            ({"views": {"mel": 4}},),
            True,
            r"\(radar, text\), got audio, motion, text without 'radar'",
        ),
        ((AUDIO,), False, r"\(audio, text\), got audio, motion without captions"),
        ((AUDIO, MOTION | {"name": "imu"}), True, r"\(audio, imu\), .* without 'imu'"),
        (
            (AUDIO | {"name": "text"}, MOTION),
            True,
            r"\(text, motion\), got audio, motion, text without 'text'",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_with_both_names(towers, captions, message):
    clip_model, data = CLIP(*towers, **SIZE), pairs(captions=captions, zeroshot=False)
    with pytest.raises(DataError, match=message):
        evaluate(clip_model, data)
    with pytest.raises(DataError, match=message):
        collate_for(clip_model, data)


def test_batches_hold_only_the_views_and_sides_that_the_model_takes():
    data = pairs()
    some = [data[0], data[1]]
    batch = collate_for(CLIP(AUDIO | {"views": {"mel": 4}}, MOTION, **SIZE), data)(some)
    assert batch.keys() == {"audio", "audio_lengths", "motion", "motion_lengths", "ids"}
    assert batch["audio"].keys() == {"mel"}
    clip_model = CLIP(MOTION, {"name": "caption"}, **SIZE)
    batch = collate_for(clip_model, data)(some)
    assert batch.keys() == {"motion", "motion_lengths", "caption", "ids"}
    assert batch["caption"] == ["caption 1", "caption 1"]
    assert "motion to caption R@1" in evaluate(clip_model, data, draws=5).own


def test_a_table_is_cut_where_the_section_changes_whatever_the_names():
    estimate = Estimate(0.5, 0.4, 0.6, 3)
    sections = ["a", "a", "b R@1 to c", "b R@1 to c", "a"]
    metrics = {f"m{i}": Metric(estimate, section) for i, section in enumerate(sections)}
    lines = as_text(metric_table({"x": metrics, "y": {}}, title="t")).splitlines()
    rows = [line for line in lines if line.startswith(("│ m", "├"))]
    assert [row[2] if row[0] == "│" else "-" for row in rows] == list("mm-mm-m")
