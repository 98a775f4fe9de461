"""Faults of the machine end a run in one sentence, with the command that continues it."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from multiprocessing import active_children

import pytest
import torch

from clipseq.errors import ConfigError
from clipseq.training import (
    RunFolder,
    TrainingInterrupted,
    TrainingStopped,
    read_config,
    train,
    write_config,
)
from clipseq.training.journal import Journal, read_rows
from clipseq.training.launch.interruption import naming_the_command

STEPS = 4


def at_step(wanted, do):
    """Return a progress callback that calls `do()` after a step."""

    def progress(step, steps, row):
        if step == wanted:
            do()

    return progress


def continued(config, dataset):
    """Resume a run, and return the steps in its journal."""
    with warnings.catch_warnings(action="ignore"):  # it may start again at step 1
        train(config, dataset=dataset, resume=True)
    return [int(row["step"]) for row in read_rows(RunFolder(config.training.out).metrics)]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_after_its_step(dataset, small_run, request, name):
    number = getattr(signal, name)
    # The tests themselves may run under nohup, which ignores SIGHUP.
    before = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))
    config = small_run("run of two words", max_steps=STEPS)
    press = at_step(2, lambda: signal.raise_signal(number))
    with pytest.raises(TrainingInterrupted, match=r"after step 2 of 4; .* --resume '.*words'$"):
        train(config, dataset=dataset, progress=press)
    assert continued(config, dataset) == [1, 2, 3, 4]


def test_a_signal_that_the_process_ignores_stays_ignored(dataset, small_run, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup sets it
    try:
        config = small_run(max_steps=2)
        train(config, dataset=dataset, progress=at_step(1, lambda: signal.raise_signal(1)))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(errno.EPIPE, "Broken pipe"), ValueError("I/O operation on closed file.")],
)
def test_a_progress_that_cannot_be_shown_ends_the_run_after_its_step(dataset, small_run, error):
    config = small_run(max_steps=STEPS)

    def show():
        raise error

    with pytest.raises(
        TrainingInterrupted,
        match=rf"after step 1 of 4, since its progress cannot be shown \({re.escape(str(error))}\);"
        " continue with: clipseq train --resume ",
    ):
        train(config, dataset=dataset, progress=at_step(1, show))
    assert continued(config, dataset) == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [InterruptedError(), ValueError("mine"), OSError("mine too")])
def test_an_error_of_ones_own_comes_out_of_progress_as_it_is(dataset, small_run, error):
    def show():
        raise error

    with pytest.raises(type(error)) as caught:
        train(small_run(max_steps=2), dataset=dataset, progress=at_step(1, show))
    assert caught.value is error


def test_a_killed_worker_ends_the_run_in_one_sentence(dataset, small_run):
    config = small_run(max_steps=50, num_workers=1)

    def kill():
        (worker,) = active_children()
        os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(TrainingStopped) as caught:
        train(config, dataset=dataset, progress=at_step(3, kill))
    assert re.fullmatch(
        r"a process that loads clips was killed or ended by itself; if memory ran out, lower "
        r"training\.num_workers; continue from the last checkpoint with: "
        r"clipseq train --resume \S+",
        str(caught.value),
    )


def test_an_error_in_a_worker_comes_without_its_traceback(dataset, small_run, monkeypatch):
    def fail(*_):
        raise ConfigError("augment must be something else")

    monkeypatch.setattr("clipseq.training.stream.augment_clip", fail)
    with pytest.raises(ConfigError, match=r"^augment must be something else$"):
        train(small_run(num_workers=1), dataset=dataset)


@pytest.mark.parametrize(
    ("file", "continues"),
    [
        ("config.toml", "; then start again: nothing of the run was written yet"),
        ("tokenizer", "; start the run again with: clipseq train --resume "),
        ("best.ckpt", "; start the run again with: clipseq train --resume "),
        ("model.safetensors", "; continue from the last checkpoint with: clipseq train --resume "),
    ],
)
def test_a_full_disk_ends_the_run_in_one_sentence(dataset, small_run, monkeypatch, file, continues):
    config = small_run(max_steps=STEPS)
    sync = os.fsync

    def fill(descriptor):
        if file in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("clipseq.engine.files.os.fsync", fill)
    with pytest.raises(TrainingStopped) as caught:
        train(config, dataset=dataset)
    text = str(caught.value)
    assert text.startswith("[Errno 28] No space left on device; free some space" + continues)
    assert "\n" not in text
    monkeypatch.undo()
    folder = RunFolder(config.training.out)
    if file == "config.toml":
        assert not folder.root.exists()
        train(config, dataset=dataset)
    else:
        assert continued(config, dataset) == [1, 2, 3, 4]
    assert not list(folder.root.rglob("*.partial"))


@pytest.mark.parametrize("buffering", [0, -1])
def test_a_disk_that_fills_while_torch_writes_is_named(tmp_path, buffering):
    full = "/dev/full"
    if not os.path.exists(full):
        pytest.skip(f"no {full} here")
    with (
        pytest.raises(TrainingStopped, match=r"^\[Errno 28\] No space left.*nothing of the run"),
        naming_the_command(RunFolder(tmp_path / "run")),
        open(full, "wb", buffering=buffering) as file,
    ):
        torch.save({"weights": torch.zeros(100_000)}, file)


def test_a_run_inside_no_grad_or_inference_mode_learns(dataset, small_run):
    losses = []
    for name, mode in (("no_grad", torch.no_grad), ("inference", torch.inference_mode)):
        config = small_run(name, max_steps=2)
        with mode():
            model = train(config, dataset=dataset)
            assert not torch.is_grad_enabled()
        assert all(p.requires_grad and not p.is_inference() for p in model.parameters())
        rows = read_rows(RunFolder(config.training.out).metrics)
        losses.append([row["loss_total"] for row in rows])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_of_two_first_commands_at_once_one_trains(dataset, small_run):
    config = small_run(max_steps=2)
    both, ends = threading.Barrier(2), []

    def start():
        both.wait()
        try:
            train(config, dataset=dataset)
            ends.append("trained")
        except ConfigError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends.count("trained") == 1
    (other,) = [end for end in ends if end != "trained"]
    assert "one command at a time" in other or "would be overwritten" in other


@pytest.mark.parametrize("damage", [b"12", b"12,0.5", b"12,0.5,0.", b"\0\0\0\0\0\0", b"x,y,z\n"])
def test_a_row_that_was_cut_is_dropped(tmp_path, damage):
    journal = Journal(tmp_path / "metrics.csv", tmp_path / "events")
    for step in range(1, 13):
        journal.write(step, {"a": step / 7, "b": 1.0})
    journal.close()
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n12,") + 1] + damage)
    assert [row["step"] for row in read_rows(path)] == [str(step) for step in range(1, 12)]
    Journal(path, tmp_path / "events", start=12).close()
    assert path.read_bytes() == whole[: whole.index(b"\n12,") + 1]


def test_clips_with_other_maps_are_noticed(dataset, small_run):
    from clipseq.data import MapDataset

    config = small_run(max_steps=4)
    with pytest.raises(TrainingInterrupted):
        train(config, dataset=dataset, progress=at_step(2, lambda: signal.raise_signal(2)))
    clips = [dataset[i] for i in range(len(dataset))]
    for clip in clips:
        for values in clip.signal.values():
            values += 0.5
    changed = MapDataset.from_clips(
        clips, modality=dataset.modality, class_captions=dataset.class_captions
    )
    with pytest.warns(UserWarning, match="the training clips are not those"):
        train(config, dataset=changed, resume=True)


SHOWN = "import sys; from clipseq.cli.app import run; sys.argv[0] = 'clipseq'; run()"


@pytest.mark.parametrize(
    ("redirect", "status", "out", "err"),
    [
        ("2> >(head -n 2 > {err}; exec cat > /dev/null)", 0, "evaluate it with", "clips:"),
        ("2> >(head -n 2 > {err})", 130, "its progress cannot be shown", "clips:"),
        ("2>&-", 0, "evaluate it with", ""),
        ("2> {err} | exec true", 1, "", "training: 40/40"),
    ],
)
def test_a_closed_pipe_on_the_command_line(
    dataset, small_run, tmp_path, redirect, status, out, err
):
    if not os.path.exists("/bin/bash"):
        pytest.skip("no bash here")
    from clipseq.data.folder_format import write_dataset

    clips = [dataset[i] for i in range(len(dataset)) if dataset[i].label is None]
    write_dataset(tmp_path / "data", clips, modality=dataset.modality)
    config = small_run(max_steps=40)
    write_config(config, tmp_path / "c.toml")
    text = (tmp_path / "c.toml").read_text().replace('"given by the test"', f'"{tmp_path}/data"')
    text = re.sub(r'path = ".*"', f'path = "{tmp_path}/data"', text)
    (tmp_path / "c.toml").write_text(text)
    command = f'{sys.executable} -c "{SHOWN}" train c.toml {redirect.format(err="err")}; '
    command += "exit ${PIPESTATUS[0]}"
    ran = subprocess.run(
        ["/bin/bash", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=100
    )
    assert ran.returncode == status
    assert out in ran.stdout
    if err:
        assert err in (tmp_path / "err").read_text()
        assert "Traceback" not in (tmp_path / "err").read_text()
    if status == 130:
        folder = read_config(tmp_path / "run" / "config.toml").training.out
        assert f"--resume {folder}" in ran.stdout
