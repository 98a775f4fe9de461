"""The model card is true: its example runs, and it says what was given and what was measured."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from clipseq import CLIP, Similarity, register_similarity
from clipseq.encoders import train_tokenizer
from clipseq.model import CardFacts
from clipseq.model.card import METRICS, OWNER, write_metrics

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
SIGNAL = {"views": {"mel": 6, "pitch": 2}, "patch_frames": 4, "name": "audio"}
FACTS = CardFacts(title="Tiny", license="mit", data="Four made-up clips.", citation="@misc{a}")


def make(*towers, **options):
    options = {"sequence_similarity_type": "local", **options}
    return CLIP(*(towers or (SIGNAL,)), **SIZE, **options)


def card_of(folder: Path) -> tuple[str, dict]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text, yaml.safe_load(text.split("---\n")[1])


def run_example(folder: Path, monkeypatch) -> dict:
    monkeypatch.chdir(folder)
    names: dict = {}
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    exec(code, names)
    return names


TEXT = {"tower": "text", "name": "question"}
MOTION = {"tower": "signal", "name": "motion", "views": {"joints": 3}, "patch_frames": 5}


@pytest.mark.parametrize(
    ("towers", "options", "tag"),
    [
        ((SIGNAL,), {}, "feature-extraction"),
        ((SIGNAL,), {"tokenizer": train_tokenizer(["he sits"], kind="word")}, "feature-extraction"),
        ((SIGNAL,), {"context_length": 6}, "feature-extraction"),
        ((SIGNAL, MOTION), {}, "feature-extraction"),
        ((TEXT,), {"use_sequence_similarity": False}, "sentence-similarity"),
    ],
    ids=["byte", "word", "short", "signals", "texts"],
)
def test_its_example_runs_and_its_tag_fits(towers, options, tag, tmp_path, monkeypatch):
    make(*towers, **options).save_pretrained(tmp_path)
    _, head = card_of(tmp_path)
    assert head["library_name"] == "clipseq"
    assert head["pipeline_tag"] == tag
    assert "license" not in head
    names = run_example(tmp_path, monkeypatch)
    assert names["scores"].shape == (2, 2)


def test_it_says_what_was_given_and_guesses_nothing(tmp_path):
    make().save_pretrained(tmp_path / "bare")
    text, _ = card_of(tmp_path / "bare")
    assert text.count("Not stated.") == 3  # data, licence, citation
    make().save_pretrained(tmp_path / "full", card=FACTS)
    text, head = card_of(tmp_path / "full")
    assert head["license"] == "mit"
    for fact in ("# Tiny", "Four made-up clips.", "@misc{a}", "mel (6 bins), pitch (2 bins)"):
        assert fact in text
    assert "Not stated." not in text


def test_it_names_the_similarity_with_its_plugin_and_version(tmp_path, fresh_registry):
    from clipseq import available_similarities

    class Mine(type(next(iter(make().modules())).sequence_loss_fn.similarity_fn)):
        pass

    assert issubclass(Mine, Similarity)
    register_similarity("mine", Mine)
    make(sequence_similarity_type="mine").save_pretrained(tmp_path)
    text, _ = card_of(tmp_path)
    assert "| similarity of sequences | `mine`" in text
    make(
        sequence_similarity_type="combined",
        sequence_similarity_options={"parts": {"local": {}, "global": {}}},
    ).save_pretrained(tmp_path)
    text, _ = card_of(tmp_path)
    version = available_similarities()["local"].version
    assert f"| `combined`, `local`, `global` of clipseq {version} |" in text
    assert "local 0.500, global 0.100" in text


def test_a_card_that_somebody_owns_is_left_alone(tmp_path):
    make().save_pretrained(tmp_path, card=FACTS)
    text = (tmp_path / "README.md").read_text()
    make().save_pretrained(tmp_path)
    assert "Four made-up clips." not in (tmp_path / "README.md").read_text()  # ours: written anew
    mine = text.replace(OWNER + "\n", "")
    (tmp_path / "README.md").write_text(mine)
    make().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == mine


def test_metrics_go_between_their_lines_and_stay_with_the_weights(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    make(sequence_similarity_type="global").save_pretrained(first, card=FACTS)
    before, _ = card_of(first)
    for value in ("0.1", "0.5"):  # the later evaluation replaces the earlier one
        assert write_metrics(first, [["metric", "value"], ["R@1", value]], "On a|b.")
    text, _ = card_of(first)
    assert "| R@1 | 0.5 |" in text
    assert "0.1 |" not in text
    assert text.split(METRICS[0])[0] == before.split(METRICS[0])[0]
    assert text.split(METRICS[1])[1] == before.split(METRICS[1])[1]

    # A model that is loaded and saved again has the same facts and metrics ...
    model = CLIP.from_pretrained(first)
    assert model.card == FACTS
    model.save_pretrained(second)
    assert card_of(second)[0] == text
    # ... until it is trained.
    batch = {"audio": {"mel": torch.randn(2, 6, 8)}, "text": ["he sits", "she waves"]}
    model.training_step(batch)
    model.save_pretrained(second)
    assert card_of(second)[0] == text
    model.train().training_step(batch)
    model.save_pretrained(second)
    assert "R@1" not in card_of(second)[0]
    assert card_of(second)[0] == before


def test_without_a_place_for_metrics_nothing_is_written(tmp_path):
    rows = [["metric", "value"], ["R@1", "0.5"]]
    assert not write_metrics(tmp_path, rows, "")
    (tmp_path / "README.md").write_text("mine")
    assert not write_metrics(tmp_path, rows, "")
    assert (tmp_path / "README.md").read_text() == "mine"
