"""The model that a run keeps is that of its best validation; the last one is beside it."""

import csv
import json
import signal

import attrs
import pytest
import torch

from clipseq import CLIP
from clipseq.data import MapDataset
from clipseq.errors import ConfigError
from clipseq.training import RunFolder, TrainingInterrupted, train
from clipseq.training.runs import evaluate_run, load_model
from clipseq.training.selection import Selection


def rows(config):
    with RunFolder(config.training.out).metrics.open(newline="") as lines:
        return list(csv.DictReader(lines))


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.mark.parametrize(
    ("monitor", "values", "best", "since"),
    [
        ("R1", [0.2, 0.5, 0.4, 0.3], 2, 2),
        ("R1", [0.2, 0.5, 0.5, 0.3], 3, 1),  # the later of two equals
        ("loss_total", [0.2, 0.5, 0.1, 0.3], 3, 1),
        ("order_accuracy", [0.2, 0.5, 0.1, 0.9], 4, 0),
    ],
)
def test_the_best_validation_is_kept(monitor, values, best, since):
    selection = Selection(monitor)
    for step, value in enumerate(values, 1):
        improved = selection.improves({monitor: value})
        selection = selection.after(step, value, improved=improved)
        # A checkpoint holds plain values, and continues the selection.
        selection = Selection.resume(monitor, json.loads(json.dumps(attrs.asdict(selection))))
    assert (selection.step, selection.value, selection.since) == (best, values[best - 1], since)
    assert not selection.is_over(None)
    assert [selection.is_over(patience) for patience in (1, 2, 3)] == [
        since >= patience for patience in (1, 2, 3)
    ]
    assert Selection.resume("another", attrs.asdict(selection)) == Selection("another")


@pytest.fixture
def script(monkeypatch):
    """`script(0.1, 0.9)`: the R1 of each validation, whatever the model."""

    def write(*values):
        upcoming = iter(values)

        def validation_metrics(model, clips, *, batch_size):
            return {"R1": next(upcoming)}

        monkeypatch.setattr("clipseq.training.loop.validation_metrics", validation_metrics)

    return write


def test_a_run_keeps_its_best_and_its_last_model(dataset, small_run, script):
    script(0.1, 0.75, 0.5)
    config = small_run()
    model = train(config, dataset=dataset)
    folder = RunFolder(config.training.out)
    checkpoint = torch.load(folder.best)
    assert checkpoint["global_step"] == 4
    assert checkpoint["best"] == {"monitor": "R1", "value": 0.75, "step": 4, "since": 0}
    assert same(model.state_dict(), checkpoint["model"])
    assert not model.training
    last = torch.load(folder.last)
    assert last["best"] == {"monitor": "R1", "value": 0.75, "step": 4, "since": 1}
    assert not same(last["model"], checkpoint["model"])
    for name, weights in (("best", checkpoint["model"]), ("last", last["model"])):
        assert same(load_model(folder.root, name).state_dict(), weights)
    assert "step 4, with the highest val_R1 of all validations, 0.75" in (
        (folder.model / "README.md").read_text()
    )
    assert "of the last step" in (folder.model_last / "README.md").read_text()
    assert [row["val_R1"] for row in rows(config)] == ["", "0.1", "", "0.75", "", "0.5"]

    found, path = evaluate_run(folder.root, dataset_path(dataset, folder), checkpoint="last")
    best, best_path = evaluate_run(folder.root, dataset_path(dataset, folder))
    assert (path.name, best_path.name) == ("evaluation-last.json", "evaluation.json")
    assert not torch.equal(found.scores["pooled"], best.scores["pooled"])
    with pytest.raises(ValueError, match="must be 'best' for a saved model, got 'last'"):
        load_model(folder.model, "last")


@pytest.mark.usefixtures("unchecked_signatures")
def test_other_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint must be 'best' or 'last', got 'first'"):
        load_model(tmp_path, "first")


def dataset_path(dataset: MapDataset, folder: RunFolder):
    from clipseq.data import write_dataset

    path = folder.root.with_name("data")
    if not path.exists():
        clips = [dataset[k] for k in range(len(dataset)) if dataset[k].split == "test"]
        write_dataset(path, clips)
    return path


def test_a_resumed_run_remembers_the_best(dataset, small_run, script):
    def press(step, steps, row):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    values = (0.75, 0.1, 0.5)
    whole, cut = small_run("whole"), small_run("cut")
    script(*values)
    expected = train(whole, dataset=dataset)
    script(*values)
    with pytest.raises(TrainingInterrupted):
        train(cut, dataset=dataset, progress=press)
    resumed = train(cut, dataset=dataset, resume=True)
    assert same(resumed.state_dict(), expected.state_dict())
    assert torch.load(RunFolder(cut.training.out).best)["global_step"] == 2
    assert [row["val_R1"] for row in rows(cut)] == [row["val_R1"] for row in rows(whole)]


def test_a_run_without_a_new_best_stops_early_and_is_finished(dataset, small_run, script):
    script(0.5, 0.75, 0.7, 0.1)
    config = small_run(max_steps=40, patience=2)
    model = train(config, dataset=dataset)
    assert [row["step"] for row in rows(config)] == [str(step) for step in range(1, 9)]
    again = train(config, dataset=dataset, resume=True)
    assert len(rows(config)) == 8
    assert same(again.state_dict(), model.state_dict())
    assert torch.load(RunFolder(config.training.out).best)["global_step"] == 4


def test_a_run_without_validation_keeps_its_last_model(dataset, small_run):
    clips = [dataset[k] for k in range(len(dataset)) if dataset[k].split == "train"]
    config = small_run(max_steps=2, monitor="order_accuracy")
    model = train(config, dataset=MapDataset.from_clips(clips))
    folder = RunFolder(config.training.out)
    assert not folder.model_last.exists()
    assert "of the last step" in (folder.model / "README.md").read_text()
    for name in ("best", "last"):
        assert same(load_model(folder.root, name).state_dict(), model.state_dict())
    assert same(CLIP.from_pretrained(folder.model).state_dict(), torch.load(folder.last)["model"])


def test_orders_cannot_be_monitored_without_permuted_captions(dataset, small_run):
    clips = [dataset[k] for k in range(len(dataset))]
    clips = [attrs.evolve(clip, permuted=()) for clip in clips if clip.label is None]
    config = small_run(monitor="order_accuracy")
    with pytest.raises(ConfigError, match=r"training.monitor must .* monitor 'R1' or 'loss_total'"):
        train(config, dataset=MapDataset.from_clips(clips))
    assert not config.training.out.exists()
