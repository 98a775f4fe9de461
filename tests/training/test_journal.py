"""metrics.csv has one row per step, even for steps that a resumed run takes again."""

import csv

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from clipseq.training.journal import Journal


def rows(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_resumed_journal_forgets_what_did_not_happen(tmp_path):
    path, events = tmp_path / "metrics.csv", tmp_path / "tensorboard"
    journal = Journal(path, events)
    for step in (1, 2, 3):
        journal.write(step, {"loss_total": step / 8, "seconds": 1.0})
    journal.close()
    journal = Journal(path, events, start=2)
    journal.write(3, {"loss_total": 0.5, "seconds": 2.0, "val_loss_total": 0.75})
    journal.close()
    assert rows(path) == [
        {"step": "1", "loss_total": "0.125", "seconds": "1", "val_loss_total": ""},
        {"step": "2", "loss_total": "0.25", "seconds": "1", "val_loss_total": ""},
        {"step": "3", "loss_total": "0.5", "seconds": "2", "val_loss_total": "0.75"},
    ]
    logged = EventAccumulator(str(events))
    logged.Reload()
    assert [(e.step, e.value) for e in logged.Scalars("train/loss_total")] == [
        (1, 0.125),
        (2, 0.25),
        (3, 0.5),
    ]
    assert [e.step for e in logged.Scalars("validation/loss_total")] == [3]


def test_a_resumed_run_may_log_more(tmp_path):
    path, events = tmp_path / "metrics.csv", tmp_path / "tensorboard"
    journal = Journal(path, events)
    journal.write(1, {"loss_total": 1.0})
    journal.close()
    journal = Journal(path, events, start=1)
    journal.write(2, {"loss_total": 0.5, "norm/text": 3.0})
    journal.write(3, {"loss_total": 0.25})
    journal.close()
    assert rows(path) == [
        {"step": "1", "loss_total": "1", "val_loss_total": "", "norm/text": ""},
        {"step": "2", "loss_total": "0.5", "val_loss_total": "", "norm/text": "3"},
        {"step": "3", "loss_total": "0.25", "val_loss_total": "", "norm/text": ""},
    ]


def test_a_kill_after_the_resume_loses_no_kept_row(tmp_path):
    path, events = tmp_path / "metrics.csv", tmp_path / "tensorboard"
    journal = Journal(path, events)
    for step in (1, 2, 3):
        journal.write(step, {"loss_total": 1.0})
    journal.close()
    resumed = Journal(path, events, start=2)
    # A kill would leave what is on disk now.
    assert [row["step"] for row in rows(path)] == ["1", "2"]
    resumed.close()


def test_a_run_that_starts_again_forgets_all_steps(tmp_path, monkeypatch):
    # TensorBoard reads files of the same second in the order of their names, so 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    path, events = tmp_path / "metrics.csv", tmp_path / "tensorboard"
    for steps in ((1, 2, 3), (1,)):
        journal = Journal(path, events)
        for step in steps:
            journal.write(step, {"loss_total": float(len(steps))})
        journal.close()
    logged = EventAccumulator(str(events))
    logged.Reload()
    assert [(e.step, e.value) for e in logged.Scalars("train/loss_total")] == [(1, 1.0)]


def test_a_new_run_starts_an_empty_table(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss_total\n1,2\n")
    Journal(path, tmp_path / "tensorboard").close()
    assert rows(path) == []
