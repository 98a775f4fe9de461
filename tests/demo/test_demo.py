"""The demo at a size for tests: the comparison, the folder it leaves, and how it continues."""

import json
import shlex
import shutil

import attrs
import numpy as np
import pytest
import torch

from clipseq.data.simulation.captions import PHRASES, WORDINGS
from clipseq.demo import COMBINED, FULL, PLAIN, demo_configs
from clipseq.demo import run as demo
from clipseq.demo.alignment import (
    align_clips,
    choose_typical,
    find_action_words,
    mean_agreement,
    right_share,
)
from clipseq.demo.configs import Size
from clipseq.errors import ClipseqError, ConfigError
from clipseq.training import RunFolder, TrainingInterrupted

TINY = Size(clips=40, steps=4, batch_size=4, width=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo that ran to its end: its folder, its report, and the lines that it printed."""
    said = []
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SMALL", TINY)
        report = demo.run_demo(out, small=True, say=said.append)
    return out, report, said


def test_the_two_runs_differ_in_one_thing(tmp_path):
    plain, combined = demo_configs(tmp_path, FULL).values()
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
    out, report, said = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["models"]) == [PLAIN, COMBINED]
    order = metrics["models"][COMBINED]["metrics"]["sequence"]["order accuracy"]
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
    assert said[0].startswith("this takes under a minute")
    assert [line.split()[0] for line in said[1:]] == [
        "simulating", "training", "training", "evaluating", "drawing",
    ]  # fmt: skip


def test_a_finished_demo_is_shown_again_and_says_how_to_run_anew(finished, monkeypatch):
    out, report, _ = finished
    monkeypatch.setattr(demo, "SMALL", TINY)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    said = []
    shown = demo.run_demo(out, small=True, say=said.append)
    assert shown.startswith(report)
    assert shown.endswith(f"new folder:\n  clipseq demo --small --out {out}-2")
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("out", "others", "suggested"),
    [
        ("demo", [], "demo-2"),
        ("demo", ["demo-2"], "demo-3"),
        ("demo-2", [], "demo-3"),
        ("demo-2", ["demo-3"], "demo-4"),
        ("demo-small", [], "demo-small-2"),
    ],
)
def test_the_next_run_gets_the_next_number(finished, tmp_path, monkeypatch, out, others, suggested):
    monkeypatch.setattr(demo, "SMALL", TINY)
    for name in (out, *others):
        (tmp_path / name).mkdir()
    for name in ("metrics.json", "report.txt"):
        shutil.copy(finished[0] / name, tmp_path / out)
    shown = demo.run_demo(tmp_path / out, small=True)
    assert shown.endswith(f"new folder:\n  clipseq demo --small --out {tmp_path / suggested}")


@pytest.mark.parametrize(("changed", "options"), [("seed", "--small --seed 1 "), ("size", "")])
def test_results_of_another_demo_are_not_shown_as_those_of_this_one(
    finished, monkeypatch, changed, options
):
    out, _, _ = finished
    monkeypatch.setattr(demo, "SMALL", TINY)
    seed, small = (1, True) if changed == "seed" else (0, False)
    with pytest.raises(ConfigError, match="of another size or seed") as error:
        demo.run_demo(out, small=small, seed=seed)
    assert str(error.value).endswith(f"with: clipseq demo {options}--out {out}-2")
    assert str(out / "report.txt") in str(error.value)


def test_a_demo_without_a_report_is_unfinished(finished, tmp_path, monkeypatch):
    out, _, _ = finished
    monkeypatch.setattr(demo, "SMALL", TINY)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "metrics.json").write_text((out / "metrics.json").read_text())
    with pytest.raises(ConfigError, match=r"clipseq demo --small --resume --out"):
        demo.run_demo(cut, small=True)
    assert [path.name for path in cut.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("small", [False, True])
def test_it_begins_by_saying_how_long_it_takes(tmp_path, monkeypatch, small):
    said = []

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run", stop)
    out = tmp_path / "demo"
    with pytest.raises(TrainingInterrupted):
        demo.run_demo(out, small=small, say=said.append)
    (line,) = said
    if small:
        assert line.startswith("this takes under a minute on two cores")
    else:
        assert line.startswith("this takes about 5 minutes on two cores; under a minute in small: ")
        assert line.endswith(f": clipseq demo --small --out {out}-small")


def test_resume_keeps_what_is_done(finished, monkeypatch):
    out, _, _ = finished
    monkeypatch.setattr(demo, "SMALL", TINY)
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


def test_ctrl_c_names_the_command_that_resumes_and_finishes(finished, tmp_path, monkeypatch):
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
    shutil.copytree(whole / "data", out / "data")  # as if it had been interrupted before, too
    with pytest.raises(TrainingInterrupted, match=r"clipseq demo --small --resume --out .*cut"):
        demo.run_demo(out, small=True, resume=True)
    monkeypatch.setattr(demo, "train", train)
    demo.run_demo(out, small=True, resume=True)
    expected, got = (json.loads((o / "metrics.json").read_text()) for o in (whole, out))
    assert got["models"] == expected["models"]


@pytest.mark.parametrize("wording", WORDINGS, ids=lambda w: w.describe(["a", "b", "c"]))
def test_the_words_of_every_phrase_are_found(wording):
    from clipseq.encoders.tokenizer import train_tokenizer

    rng = np.random.default_rng(0)
    names = list(PHRASES)
    for _ in range(12):
        actions = [str(name) for name in rng.choice(names, 3, replace=False)]
        phrases = [str(rng.choice(PHRASES[action])) for action in actions]
        caption = wording.describe(phrases)
        tokens = train_tokenizer([caption], kind="word").tokens(caption)
        words = [token for token in tokens if any(char.isalnum() for char in token)]
        found = find_action_words(words, actions)
        for phrase, places in zip(phrases, found, strict=True):
            assert "".join(words[i] for i in places) == phrase.replace("-", "").replace(" ", "")


def test_an_action_that_the_caption_lacks_is_an_error():
    with pytest.raises(ClipseqError, match=r"describe the action 'box' .*, got 'a person waves'"):
        find_action_words(["a", "person", "waves"], ["box"])


def test_right_share_is_the_time_at_which_the_right_words_lead():
    # Steps take 1 s; words 1 and 2 describe the first action, word 3 the second, and word 0
    # neither.
    weights = np.array([[9, 1, 0, 0], [0, 0, 2, 1], [0, 1, 1, 3], [0, 0, 0, 1]], dtype=float)
    words = [(1, 2), (3,)]
    # The first action takes 0 to 2.5 s: right for the first two seconds, then wrong for half a
    # second.
    assert right_share(weights, words, [(0.0, 2.5), (2.5, 4.0)], 1.0) == pytest.approx(3.5 / 4)
    assert right_share(weights, words, [(0.0, 2.0), (2.0, 4.0)], 1.0) == 1.0
    assert right_share(weights, words, [(2.0, 4.0), (0.0, 2.0)], 1.0) == 0.0


def test_a_straight_alignment_follows_the_diagonal(finished):
    """The baseline alignment knows only the order of the words."""
    out, _, _ = finished
    from clipseq import CLIP
    from clipseq.data import MapDataset

    model = CLIP.from_pretrained(out / "combined" / "model")
    alignments = align_clips(model, MapDataset(out / "data").subset("test"))
    for one in alignments:
        assert one.weights.shape[1] == len(one.words)
        assert one.duration == pytest.approx(10.0, abs=0.5)
        assert 0 <= one.right <= 1
        assert one.straight > 1 / len(one.actions)
    agreement = mean_agreement(alignments)
    assert agreement["model"].value == pytest.approx(np.mean([a.right for a in alignments]))
    chosen = choose_typical(alignments)
    same = [a.right for a in alignments if len(a.actions) == len(chosen.actions)]
    assert chosen.right == sorted(same)[len(same) // 2]


def test_a_model_without_temporal_aligns_nothing(finished):
    out, _, _ = finished
    from clipseq import CLIP
    from clipseq.data import MapDataset

    plain = CLIP.from_pretrained(out / "plain" / "model")
    assert not torch.is_grad_enabled() or plain.sequence_loss_fn is None
    with pytest.raises(ClipseqError, match="part 'temporal'"):
        align_clips(plain, MapDataset(out / "data").subset("test"))
