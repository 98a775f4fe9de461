"""The demo at a size for tests: what it compares, what it leaves, how it goes on."""

import json
import shlex

import attrs
import numpy as np
import pytest
import torch

from clipseq.data.simulation.captions import PHRASES, WORDINGS
from clipseq.demo import run as demo
from clipseq.errors import ClipseqError, ConfigError
from clipseq.training import RunFolder, TrainingInterrupted

TINY = demo.Size(clips=40, steps=4, batch_size=4, width=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo that ran to its end: its folder, its report, what it told on the way."""
    told = []
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SMALL", TINY)
        report = demo.run_demo(out, small=True, tell=told.append)
    return out, report, told


def test_the_two_runs_differ_in_one_thing(tmp_path):
    plain, combined = demo.demo_configs(tmp_path, demo.FULL).values()
    assert plain.data == combined.data
    assert plain.tokenizer == combined.tokenizer
    assert attrs.evolve(plain.training, out=combined.training.out) == combined.training
    different = {k for k in combined.model if plain.model.get(k) != combined.model[k]}
    assert different == {"use_sequence_similarity"}
    assert plain.model.keys() == combined.model.keys()


def test_both_start_from_the_same_weights_and_clips(finished):
    out, _, _ = finished
    first = []
    for folder in ("plain", "combined"):
        header, row = (out / folder / "metrics.csv").read_text().splitlines()[:2]
        first.append(dict(zip(header.split(","), row.split(","), strict=True)))
    assert first[0]["loss_clip"] == first[1]["loss_clip"]
    assert first[0]["loss_total"] != first[1]["loss_total"]


def test_the_run_folder_holds_numbers_report_and_figures(finished):
    out, report, told = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["models"]) == [demo.PLAIN, demo.COMBINED]
    order = metrics["models"][demo.COMBINED]["metrics"]["sequence"]["order accuracy"]
    assert 0 <= order["value"] <= 1
    assert order["chance"] == 0.5
    assert set(metrics["combined_weights"]) == {"global", "local", "attention", "temporal"}
    for name in ("losses", "similarity", "alignment"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for folder in ("plain", "combined"):
        assert RunFolder(out / folder).model.exists()
    assert (out / "report.txt").read_text() == report
    assert "order accuracy" in report
    assert f"{order['value']:.3f}" in report
    assert [line.split()[0] for line in told] == [
        "simulating", "training", "training", "evaluating", "drawing",
    ]  # fmt: skip


def test_a_demo_is_not_overwritten_and_resume_keeps_what_is_done(finished, monkeypatch):
    out, _, _ = finished
    monkeypatch.setattr(demo, "SMALL", TINY)
    with pytest.raises(ClipseqError, match=r"clipseq demo --small --resume --out"):
        demo.run_demo(out, small=True)
    before = json.loads((out / "metrics.json").read_text())
    monkeypatch.setattr(demo, "train", lambda *a, **o: pytest.fail("trained again"))
    demo.run_demo(out, small=True, resume=True)
    after = json.loads((out / "metrics.json").read_text())
    assert before["models"] == after["models"]
    monkeypatch.setattr(demo, "SMALL", attrs.evolve(TINY, steps=5))
    with pytest.raises(ClipseqError, match="begun with another configuration"):
        demo.run_demo(out, small=True, resume=True)


def test_the_command_that_continues_is_the_one_that_was_begun(tmp_path):
    out = tmp_path / "my demo"
    out.mkdir()
    (out / "data").touch()
    with pytest.raises(ConfigError) as error:
        demo.run_demo(out, small=True, seed=3)
    command = str(error.value).partition("with: ")[2].partition(";")[0]
    assert shlex.split(command) == [
        "clipseq", "demo", "--small", "--seed", "3", "--resume", "--out", str(out),
    ]  # fmt: skip


def test_ctrl_c_says_how_to_go_on_and_resume_finishes(finished, tmp_path, monkeypatch):
    whole, _, _ = finished
    monkeypatch.setattr(demo, "SMALL", TINY)
    train = demo.train

    def interrupted(config, *, progress, **options):
        def press(step, steps, row):
            if config.training.out.name == "combined" and step == 2:
                import signal

                signal.raise_signal(signal.SIGINT)

        return train(config, progress=press, **options)

    monkeypatch.setattr(demo, "train", interrupted)
    out = tmp_path / "cut"
    with pytest.raises(TrainingInterrupted, match=r"clipseq demo --small --resume --out .*cut"):
        demo.run_demo(out, small=True)
    monkeypatch.setattr(demo, "train", train)
    demo.run_demo(out, small=True, resume=True)
    expected, got = (json.loads((o / "metrics.json").read_text()) for o in (whole, out))
    assert got["models"] == expected["models"]


@pytest.mark.parametrize("wording", WORDINGS, ids=lambda w: w.tell(["a", "b", "c"]))
def test_the_words_of_every_phrase_are_found(wording):
    from clipseq.encoders.tokenizer import train_tokenizer

    rng = np.random.default_rng(0)
    names = list(PHRASES)
    for _ in range(12):
        actions = [str(name) for name in rng.choice(names, 3, replace=False)]
        phrases = [str(rng.choice(PHRASES[action])) for action in actions]
        caption = wording.tell(phrases)
        tokens = train_tokenizer([caption], kind="word").tokens(caption)
        words = [token for token in tokens if any(char.isalnum() for char in token)]
        found = demo.action_words(words, actions)
        for phrase, places in zip(phrases, found, strict=True):
            assert "".join(words[i] for i in places) == phrase.replace("-", "").replace(" ", "")


def test_an_action_that_is_not_told_is_an_error():
    with pytest.raises(ClipseqError, match=r"'a person waves' does not tell the action 'box'"):
        demo.action_words(["a", "person", "waves"], ["box"])


def test_right_share_is_the_time_at_which_the_right_words_lead():
    # Steps of 1 s; words 1 and 2 tell the first action, word 3 the second; word 0 tells nothing.
    weights = np.array([[9, 1, 0, 0], [0, 0, 2, 1], [0, 1, 1, 3], [0, 0, 0, 1]], dtype=float)
    told = [(1, 2), (3,)]
    # First action 0 to 2.5 s: right in the first two seconds, wrong for half a second after.
    assert demo.right_share(weights, told, [(0.0, 2.5), (2.5, 4.0)], 1.0) == pytest.approx(3.5 / 4)
    assert demo.right_share(weights, told, [(0.0, 2.0), (2.0, 4.0)], 1.0) == 1.0
    assert demo.right_share(weights, told, [(2.0, 4.0), (0.0, 2.0)], 1.0) == 0.0


def test_a_straight_alignment_follows_the_diagonal(finished):
    """What the model is compared with: no better than the order of the words."""
    out, _, _ = finished
    from clipseq import CLIP
    from clipseq.data import MapDataset

    model = CLIP.from_pretrained(out / "combined" / "model")
    alignments = demo.align_clips(model, MapDataset(out / "data").subset("test"))
    for one in alignments:
        assert one.weights.shape[1] == len(one.words)
        assert one.duration == pytest.approx(10.0, abs=0.5)
        assert 0 <= one.right <= 1
        assert one.straight > 1 / len(one.actions)
    agreement = demo.alignment_agreement(alignments)
    assert agreement["model"].value == pytest.approx(np.mean([a.right for a in alignments]))
    chosen = demo.representative(alignments)
    same = [a.right for a in alignments if len(a.actions) == len(chosen.actions)]
    assert chosen.right == sorted(same)[len(same) // 2]


def test_a_model_without_temporal_aligns_nothing(finished):
    out, _, _ = finished
    from clipseq import CLIP
    from clipseq.data import MapDataset

    plain = CLIP.from_pretrained(out / "plain" / "model")
    assert not torch.is_grad_enabled() or plain.sequence_loss_fn is None
    with pytest.raises(ClipseqError, match="part 'temporal'"):
        demo.align_clips(plain, MapDataset(out / "data").subset("test"))
