"""One run in several real processes: the same numbers, one folder, and an end in every case."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from clipseq import CLIP
from clipseq.data import MapDataset, simulate
from clipseq.errors import ConfigError
from clipseq.training import RunFolder, read_config, train
from clipseq.training.config import TrainingConfig
from clipseq.training.launch.mailbox import Letter, Mailbox, post, refused
from clipseq.training.launch.processes import joined, layout
from clipseq.training.module import ClipTraining

PATIENCE = 150
"""Seconds after which a test gives up on a process; a busy machine is slow."""

CONFIG = """
[data]
path = "{data}"
[model]
transformer_width = 8
transformer_layers = 1
transformer_heads = 2
context_length = 64
{model}
[model.encoder_cfg]
patch_frames = 8
dropout = {dropout}
[tokenizer]
kind = "word"
[training]
out = "{out}"
max_steps = {steps}
batch_size = 5
accelerator = "cpu"
warmup_steps = 2
{training}
"""

CLIPSEQ = [sys.executable, "-m", "clipseq"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "data"
    shares = {"train": 0.5, "val": 0.2, "test": 0.2, "zeroshot": 0.1}
    simulate(folder, 30, seconds=5.0, split_shares=shares)
    return folder


@pytest.fixture
def config(data, tmp_path):
    """`config("run", steps=6, training="devices = 2")`: the path of a configuration."""

    def write(out="run", *, steps=6, dropout=0.1, training="checkpoint_every = 2", model=""):
        path = tmp_path / f"{out}.toml"
        path.write_text(
            CONFIG.format(
                data=data, out=tmp_path / out, steps=steps, dropout=dropout,
                training=training, model=model,
            )
        )  # fmt: skip
        return path

    return write


@pytest.fixture
def start():
    """`start([...], RANK=...)`: a process that does not outlive the test."""
    started = []

    def run(command, **environment):
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def start_ranks(start):
    """`start_ranks(3, ["train", path])`: one process a rank, as a user's own launcher would."""

    def run(size, arguments, command=CLIPSEQ):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            start([*command, *arguments], RANK=str(rank), LOCAL_RANK=str(rank), **where)
            for rank in range(size)
        ]

    return run


def torchrun(size, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", size, "-m", "clipseq", *arguments]


def ended(process):
    """Exit status and standard error, with what had been read of it before left out."""
    _, error = process.communicate(timeout=PATIENCE)
    return process.returncode, error


def wait_for_step(process, step):
    """Until progress of at least that many steps has been printed."""
    for line in process.stderr:
        if line.startswith("training: ") and int(line.split()[1].split("/")[0]) >= step:
            return
    pytest.fail("the process ended before that step")


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as lines:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(lines)
        ]


def assert_close(folder, other):
    """The same steps with the same numbers, up to rounding."""
    mine, theirs = rows(folder), rows(other)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, expected in zip(mine, theirs, strict=True):
        assert {name for name in row if row[name]} == {name for name in expected if expected[name]}
        for name in filter(row.get, row):
            # The mean over processes of means over steps is not quite the mean over steps.
            tolerance = 0.05 if name in ("norm/radar_seq", "norm/text_seq") else 1e-5
            np.testing.assert_allclose(
                float(row[name]), float(expected[name]), rtol=tolerance, atol=1e-5, err_msg=name
            )


def test_a_run_is_the_same_run_in_any_number_of_processes(config, start, tmp_path):
    """Uneven shares, validation, accumulated batches; by lightning's launcher and torchrun's."""
    options = "checkpoint_every = 2\naccumulate = 2\nlog_norms = true\ndevices = "
    one, two = (config(f"run{n}", steps=4, dropout=0.0, training=f"{options}{n}") for n in (1, 2))
    status, told = ended(start([*CLIPSEQ, "train", two]))
    assert status == 0, told
    assert [line[:13] for line in told.splitlines()] == [f"training: {k}/4" for k in (1, 2, 3, 4)]
    # torchrun decides, whatever the config says
    status, told = ended(start(torchrun(3, "train", two, "--out", tmp_path / "run3")))
    assert status == 0, told
    assert told.count("training: 4/4") == 1
    model = train(read_config(one))
    for size in (2, 3):
        folder = RunFolder(tmp_path / f"run{size}")
        assert_close(folder.root, tmp_path / "run1")
        assert folder.last.exists()
        assert folder.best.exists()
        assert len(list(folder.tensorboard.glob("events*"))) == 1
        saved = CLIP.from_pretrained(folder.model).state_dict()
        for name, value in model.state_dict().items():
            # AdamW makes a step even of a gradient of mere rounding, as that of a key's bias.
            torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-4)


def test_a_similarity_that_does_not_count_changes_nothing(config, start_ranks, tmp_path):
    """With a weight of 0 its parameters have no gradient, for which DDP would wait."""
    idle = "sequence_similarity_weight = 0.0"
    ranks = start_ranks(2, ["train", config("two", steps=3, dropout=0.0, model=idle)])
    assert [ended(rank)[0] for rank in ranks] == [0, 0]
    train(read_config(config("one", steps=3, dropout=0.0, model=idle)))
    assert_close(tmp_path / "two", tmp_path / "one")


def test_clips_are_simulated_once_and_read_by_all(config, start_ranks, tmp_path):
    path = config(steps=2)
    lines = path.read_text().splitlines()
    lines[1:3] = ["[data.simulated]", "clips = 60"]
    path.write_text("\n".join(lines))
    first, second = map(ended, start_ranks(2, ["train", path]))
    assert first[0] == second[0] == 0, first[1] + second[1]
    assert "simulating: 60/60" in first[1]
    assert second[1] == ""
    assert MapDataset(tmp_path / "run" / "data").splits["train"] == 45
    assert len(rows(tmp_path / "run")) == 2


def test_under_torchrun_a_killed_process_ends_the_run_and_it_can_be_resumed(
    config, start, tmp_path
):
    """Step for step the losses of a run that nobody killed, dropout and all."""
    status, told = ended(start(torchrun(2, "train", config("whole", steps=20))))
    assert status == 0, told
    run = start(torchrun(2, "train", config("cut", steps=20)))
    wait_for_step(run, 6)
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    began = time.monotonic()
    status, told = ended(run)
    assert time.monotonic() - began < 60
    assert status != 0
    assert "rank      : 1" in told
    assert "SIGKILL" in told
    done = torch.load(RunFolder(tmp_path / "cut").last)["global_step"]
    assert 4 <= done < 20
    status, told = ended(start(torchrun(2, "train", "--resume", tmp_path / "cut")))
    assert status == 0, told
    assert f"training: {done + 1}/20" in told
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def ranks_of(launcher):
    """Process ids of the children, in the order of their ranks."""
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    if not listed.exists():
        pytest.skip("children of a process are only found on Linux")
    return [int(child) for child in listed.read_text().split()]


def test_without_a_launcher_the_others_say_who_is_gone(config, start_ranks, tmp_path):
    """And one process goes on where three stopped, with the same losses."""
    path = config("cut", steps=20, dropout=0.0, training="checkpoint_every = 2\ntimeout = 100")
    ranks = start_ranks(3, ["train", path])
    wait_for_step(ranks[0], 6)
    ranks[2].kill()
    began = time.monotonic()
    for rank in (0, 1):
        status, told = ended(ranks[rank])
        assert time.monotonic() - began < 60  # at once, and not by the time-out
        assert status == 1
        [said] = [line for line in told.splitlines() if line.startswith("clipseq: ")]
        assert "rank 2 is gone" in said
        assert f"noticed by rank {rank} of 3, in step " in said
        assert "of 20: " in said
        assert f"last checkpoint with: clipseq train --resume {tmp_path / 'cut'}" in said
        assert "Traceback" not in told
    train(read_config(tmp_path / "cut" / "config.toml"), resume=True)
    train(read_config(config("whole", steps=20, dropout=0.0)))
    assert_close(tmp_path / "cut", tmp_path / "whole")


def test_a_process_that_hangs_ends_the_others_by_the_time_out(config, start_ranks):
    first, second = start_ranks(2, ["train", config(steps=2000, training="timeout = 20")])
    wait_for_step(first, 1)
    second.send_signal(signal.SIGSTOP)
    status, told = ended(first)
    assert status == 1
    assert "another process does not answer, though none has ended" in told, told
    assert "training.timeout = 20 s" in told
    assert "in step" in told


def test_all_stop_after_the_same_step_whoever_is_asked(config, start_ranks, tmp_path):
    """And resumed in more processes, it is the run that was not stopped."""
    ranks = start_ranks(2, ["train", config("cut", steps=12, dropout=0.0)])
    wait_for_step(ranks[0], 1)
    ranks[1].send_signal(signal.SIGINT)
    first, second = map(ended, ranks)
    assert first[0] == second[0] == 130
    assert "clipseq: stopped after step" in first[1]
    assert f"continue with: clipseq train --resume {tmp_path / 'cut'}" in first[1]
    assert second[1] == ""  # one tells it
    done = torch.load(RunFolder(tmp_path / "cut").last)["global_step"]
    assert len(rows(tmp_path / "cut")) == done
    again = start_ranks(3, ["train", "--resume", tmp_path / "cut"])
    assert [ended(rank)[0] for rank in again] == [0, 0, 0]
    train(read_config(config("whole", steps=12, dropout=0.0)))
    assert_close(tmp_path / "cut", tmp_path / "whole")


def test_a_signal_to_all_ends_lightnings_processes_with_a_checkpoint(config, start, tmp_path):
    """SIGTERM, as clusters send it: lightning's own handler would mix up the processes."""
    run = start([*CLIPSEQ, "train", config(steps=2000, training="devices = 2\ntimeout = 100")])
    wait_for_step(run, 1)
    began = time.monotonic()
    os.killpg(run.pid, signal.SIGTERM)
    status, told = ended(run)
    assert time.monotonic() - began < 60
    assert status == 130
    assert told.count("clipseq: stopped after step") == 1
    assert "Traceback" not in told
    assert RunFolder(tmp_path / "run").last.exists()


FAILS_IN_RANK_1 = """
import os
from clipseq import CLIP
from clipseq.cli import app as cli
from clipseq.errors import ClipseqError
step = CLIP.training_step
def failing(self, batch, batch_idx=0):
    if os.environ["RANK"] == "1" and batch_idx == 2:
        raise ClipseqError("the culprit's own words")
    return step(self, batch, batch_idx)
CLIP.training_step = failing
cli.run()
"""


def test_an_error_of_one_process_ends_all_and_all_know_it(config, start_ranks):
    culprit = [sys.executable, "-c", FAILS_IN_RANK_1]
    first, second = map(ended, start_ranks(2, ["train", config(steps=2000)], culprit))
    assert first[0] == second[0] == 1
    assert second[1] == "clipseq: rank 1: the culprit's own words\n"
    assert "rank 1 stopped: the culprit's own words" in first[1]
    assert "in step 3 of 2000" in first[1]


def test_an_error_before_the_first_step_is_told_once(config, start_ranks, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    first, second = map(ended, start_ranks(2, ["train", config()]))
    assert first[0] == second[0] == 2
    assert first[1].endswith("would be overwritten; choose another folder\n")
    assert second[1] == ""


def test_processes_that_do_not_come_together_are_an_error(config, start_ranks):
    first, second = start_ranks(2, ["train", config(training="timeout = 3")])
    second.kill()
    status, told = ended(first)
    assert status == 1
    assert "not all of the 2 processes came together within training.timeout = 3 s" in told


def test_each_rank_draws_its_own_dropout_which_depends_on_seed_and_step(monkeypatch):
    tower = {"views": {"doppler_time": 8}, "patch_frames": 2}
    clip = CLIP(tower, transformer_width=8, transformer_layers=1, transformer_heads=2)

    def drawn(rank, step, seed=3):
        monkeypatch.setattr(ClipTraining, "global_rank", rank)
        ClipTraining(clip, options(seed=seed), 1).on_train_batch_start({}, step)
        return torch.rand(1).item()

    draws = [drawn(rank, step) for rank in (0, 1, 2) for step in (5, 6)]
    assert len(set(draws)) == 6
    assert draws == [drawn(rank, step) for rank in (0, 1, 2) for step in (5, 6)]
    assert drawn(0, 5, seed=4) != drawn(0, 5)


def options(**changes):
    return TrainingConfig(out=Path("run"), max_steps=1, **changes)


@pytest.fixture
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_launcher")
def test_who_decides_on_the_number_of_processes(monkeypatch):
    assert layout(options()) == (1, 1)
    assert layout(options(devices=3)) == (3, 1)
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        layout(options(nodes=2))
    monkeypatch.setenv("MASTER_ADDR", "first")
    assert layout(options(devices=2, nodes=2)) == (2, 2)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match="'WORLD_SIZE' is not as torchrun sets it"):
        layout(options())
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert layout(options(devices=5)) == (6, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert layout(options(devices=5)) == (3, 2)


@pytest.mark.usefixtures("no_launcher")
def test_each_process_needs_a_clip():
    with (
        pytest.raises(ConfigError, match="batch_size = 4 .* of 5, each needs at least one clip"),
        joined(options(devices=5, batch_size=4)),
    ):
        pytest.fail("nothing is to be started")


@pytest.mark.usefixtures("no_launcher")
def test_processes_that_somebody_else_connected_are_counted():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with (
            pytest.raises(ConfigError, match="has 1 processes here, and the run 2"),
            joined(options(devices=2)),
        ):
            pytest.fail("nothing is to be started")
    finally:
        dist.destroy_process_group()


def test_letters_are_read_when_they_are_asked_for():
    mine, theirs = Mailbox("127.0.0.1"), Mailbox("localhost")
    assert mine.letters() == []
    letter = Letter(3, "no radar 📡", (1, 2))
    post(letter, [mine.address, theirs.address])
    assert not refused(mine.address)
    stranger = mine.address.__class__(mine.address.host, mine.address.port, "guess")
    post(Letter(4, "a stranger's"), [stranger])
    assert mine.letters() == [letter]
    assert mine.letters() == []
    mine.close()
    assert refused(mine.address)
    post(letter, [mine.address])
    theirs.close()
