"""A run in several real processes has the same numbers and one folder, and always ends."""

import csv
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PATIENCE
from torch import distributed as dist

from clipseq import CLIP
from clipseq.data import MapDataset, simulate
from clipseq.errors import ConfigError
from clipseq.training import RunFolder, read_config, train
from clipseq.training.config import TrainingConfig
from clipseq.training.launch.processes import join_processes, layout
from clipseq.training.loop import seed_dropout

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


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "data"
    shares = {"train": 0.5, "val": 0.2, "test": 0.2, "zeroshot": 0.1}
    simulate(folder, 30, seconds=5.0, split_shares=shares)
    return folder


def write_config(
    data, folder, out="run", *, steps=6, dropout=0.1, training="checkpoint_every = 2", model=""
):
    path = folder / f"{out}.toml"
    path.write_text(
        CONFIG.format(
            data=data, out=folder / out, steps=steps, dropout=dropout,
            training=training, model=model,
        )
    )  # fmt: skip
    return path


@pytest.fixture
def config(data, tmp_path):
    """`config("run", steps=6, training="devices = 2")`: the path of a configuration."""
    return partial(write_config, data, tmp_path)


IN_FLOAT64 = """
import torch
torch.set_default_dtype(torch.float64)
"""


SCRIPT = """
{before}
from clipseq.cli.app import run

if __name__ == "__main__":
    run()
"""


@pytest.fixture
def script(tmp_path):
    """`script(before)`: the path of a script that is the command line, with that code before it."""

    def write(before: str) -> Path:
        path = tmp_path / "clipseq_script.py"
        path.write_text(SCRIPT.format(before=before))
        return path

    return write


def acts(rank, batch, act):
    """Return code that makes a rank act at the start of a batch of training, counted from 0."""
    return f"""
import os, signal
from clipseq import CLIP
from clipseq.errors import ClipseqError
step = CLIP.training_step
def acting(self, batch, batch_idx=0):
    if os.environ["RANK"] == "{rank}" and self.training and batch_idx == {batch}:
        {act}
    return step(self, batch, batch_idx)
CLIP.training_step = acting
"""


def sends_itself(name):
    return f"os.kill(os.getpid(), signal.{name})"


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run of eight steps in this process, in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    folder = tmp_path_factory.mktemp("whole")
    train(read_config(write_config(data, folder, "run", steps=8, dropout=0.0)))
    torch.set_default_dtype(before)
    return folder / "run"


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as lines:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(lines)
        ]


def assert_close(folder, other):
    """Compare the rows of two runs in float64."""
    mine, theirs = rows(folder), rows(other)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, expected in zip(mine, theirs, strict=True):
        assert {name for name in row if row[name]} == {name for name in expected if expected[name]}
        for name in filter(row.get, row):
            tolerance = 1e-8
            if name.startswith("norm/"):
                # Norms are computed in float32, and the mean over processes of means over steps
                # is not quite the mean over steps.
                tolerance = 0.05 if name.endswith("_seq") else 1e-6
            np.testing.assert_allclose(
                float(row[name]), float(expected[name]), rtol=tolerance, atol=1e-8, err_msg=name
            )


@pytest.mark.usefixtures("in_float64")
def test_a_run_is_the_same_run_in_any_number_of_processes(
    config, start, torchrun, script, tmp_path
):
    """It has uneven shares, validation and accumulated batches, by lightning's launcher and
    torchrun."""
    options = "checkpoint_every = 2\naccumulate = 2\nlog_norms = true\ndevices = "
    one, two = (config(f"run{n}", steps=4, dropout=0.0, training=f"{options}{n}") for n in (1, 2))
    by_lightning = start(script(IN_FLOAT64), "train", two, before=IN_FLOAT64)
    # torchrun decides, whatever the config says
    by_torchrun = torchrun(3, script(IN_FLOAT64), "train", two, "--out", tmp_path / "run3")
    model = train(read_config(one))
    status, printed = by_lightning.ended()
    assert status == 0, printed
    steps = [line[:13] for line in printed.splitlines() if line.startswith("training: ")]
    assert steps == [f"training: {k}/4" for k in range(1, 5)]
    status, printed = by_torchrun.ended()
    assert status == 0, printed
    assert printed.count("training: 4/4") == 1
    for size in (2, 3):
        folder = RunFolder(tmp_path / f"run{size}")
        assert_close(folder.root, tmp_path / "run1")
        assert folder.best.exists()
        assert len(list(folder.tensorboard.glob("events*"))) == 1
        assert not folder.processes.exists()
        saved = CLIP.from_pretrained(folder.model).state_dict()
        pairs = [(saved, model.state_dict())]
        pairs.append((last(folder.root)["model"], last(tmp_path / "run1")["model"]))
        for weights, expected in pairs:
            assert weights.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-12)


def last(folder):
    return torch.load(RunFolder(folder).last)


@pytest.mark.usefixtures("in_float64")
def test_a_similarity_that_does_not_count_changes_nothing(config, start_ranks, tmp_path):
    """With a weight of 0 its parameters have no gradient, for which DDP would wait."""
    idle = "sequence_similarity_weight = 0.0"
    two = config("two", steps=3, dropout=0.0, model=idle)
    ranks = start_ranks(2, ["train", two], IN_FLOAT64)
    train(read_config(config("one", steps=3, dropout=0.0, model=idle)))
    assert [rank.ended()[0] for rank in ranks] == [0, 0]
    assert_close(tmp_path / "two", tmp_path / "one")


def test_clips_are_simulated_once_and_read_by_all(config, start_ranks, tmp_path):
    path = config(steps=2)
    lines = path.read_text().splitlines()
    lines[1:3] = ["[data.simulated]", "clips = 20"]
    path.write_text("\n".join(lines))
    first, second = (rank.ended() for rank in start_ranks(2, ["train", path]))
    assert first[0] == second[0] == 0, first[1] + second[1]
    assert "simulating: 20/20" in first[1]
    assert second[1] == ""
    assert MapDataset(tmp_path / "run" / "data").splits["train"] == 15
    assert len(rows(tmp_path / "run")) == 2


def test_under_torchrun_a_killed_process_ends_the_run_and_it_can_be_resumed(
    config, torchrun, script, start_ranks, tmp_path
):
    """The resumed run has the losses of an uninterrupted run, dropout included."""
    whole = start_ranks(2, ["train", config("whole", steps=8)])
    path = script(acts(rank=1, batch=5, act=sends_itself("SIGKILL")))
    status, printed = torchrun(2, path, "train", config("cut", steps=8)).ended()
    assert status != 0
    # torchrun reports whichever process it saw end first: the killed one, or the one that says so.
    assert "SIGKILL" in printed or "rank 1 is gone without a word" in printed
    assert last(tmp_path / "cut")["global_step"] == 4
    again = start_ranks(2, ["train", "--resume", tmp_path / "cut"])
    for status, printed in [rank.ended() for rank in whole + again]:
        assert status == 0, printed
    assert "training: 5/8" in again[0].printed()
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.usefixtures("in_float64")
def test_without_a_launcher_the_others_say_who_is_gone(config, start_ranks, whole, tmp_path):
    """They say it at once, long before the time-out.

    One process then continues where three stopped, with the same losses.
    """
    options = f"checkpoint_every = 2\ntimeout = {9 * PATIENCE}"
    path = config("cut", steps=8, dropout=0.0, training=options)
    killed = acts(rank=2, batch=5, act=sends_itself("SIGKILL"))
    ranks = start_ranks(3, ["train", path], IN_FLOAT64 + killed)
    for rank in (0, 1):
        status, printed = ranks[rank].ended()
        assert status == 1, printed
        [said] = [line for line in printed.splitlines() if line.startswith("clipseq: ")]
        assert "rank 2 is gone without a word" in said
        assert f"process {ranks[2].pid} on " in said
        assert f"noticed by rank {rank} of 3, in step 6 of 8: " in said
        assert f"last checkpoint with: clipseq train --resume {tmp_path / 'cut'}" in said
        assert "Traceback" not in printed
    train(read_config(tmp_path / "cut" / "config.toml"), resume=True)
    assert not RunFolder(tmp_path / "cut").processes.exists()
    assert_close(tmp_path / "cut", whole)


QUICK_ROLL_CALL = """
from datetime import timedelta
from clipseq.training.launch import processes
processes.ROLL_CALL = timedelta(seconds=9)
"""


def test_processes_that_do_not_answer_end_the_others_by_the_time_out(config, start_ranks):
    """One hangs in a step, another does not even come. The two runs wait at the same time."""
    hangs = QUICK_ROLL_CALL + acts(rank=1, batch=1, act=sends_itself("SIGSTOP"))
    ranks = start_ranks(3, ["train", config(steps=9, training="timeout = 20")], hangs)
    alone, killed = start_ranks(2, ["train", config("alone", training="timeout = 5")])
    killed.send(signal.SIGKILL)
    for rank in (ranks[0], ranks[2]):
        status, printed = rank.ended()
        assert status == 1
        assert "rank 1 does not answer, though none has ended" in printed
        assert "training.timeout = 20 s" in printed
        assert "in step 2 of 9" in printed
    status, printed = alone.ended()
    assert status == 1
    assert "not all of the 2 processes came together within training.timeout = 5 s" in printed


@pytest.mark.usefixtures("in_float64")
def test_all_stop_after_the_same_step_whoever_is_asked(config, start_ranks, whole, tmp_path):
    """Resumed in more processes, the run equals one that was not stopped."""
    asked = IN_FLOAT64 + acts(rank=1, batch=2, act=sends_itself("SIGINT"))
    ranks = start_ranks(2, ["train", config("cut", steps=8, dropout=0.0)], asked)
    first, second = (rank.ended() for rank in ranks)
    assert first[0] == second[0] == 130
    assert "clipseq: stopped after step 3 of 8" in first[1]
    assert f"continue with: clipseq train --resume {tmp_path / 'cut'}" in first[1]
    assert second[1] == ""  # only one reports it
    assert len(rows(tmp_path / "cut")) == last(tmp_path / "cut")["global_step"] == 3
    assert not RunFolder(tmp_path / "cut").processes.exists()
    again = start_ranks(3, ["train", "--resume", tmp_path / "cut"], IN_FLOAT64)
    assert [rank.ended()[0] for rank in again] == [0, 0, 0]
    assert_close(tmp_path / "cut", whole)


def test_a_signal_to_all_ends_lightnings_processes_with_a_checkpoint(
    config, start, script, tmp_path
):
    """SIGTERM, as clusters send it."""
    options = f"devices = 2\ntimeout = {9 * PATIENCE}"
    run = start(script(""), "train", config(steps=5000, training=options))
    run.wait_for_step(1)
    os.killpg(run.pid, signal.SIGTERM)
    status, printed = run.ended()
    assert status == 130
    assert printed.count("clipseq: stopped after step") == 1
    assert "Traceback" not in printed
    assert RunFolder(tmp_path / "run").last.exists()


def test_an_error_of_one_process_ends_all_and_all_know_it(config, start_ranks):
    fails = acts(rank=1, batch=2, act="""raise ClipseqError("the culprit's own words")""")
    ranks = start_ranks(2, ["train", config(steps=9)], fails)
    first, second = (rank.ended() for rank in ranks)
    assert first[0] == second[0] == 1
    assert second[1] == "clipseq: rank 1: the culprit's own words\n"
    assert "rank 1 stopped: the culprit's own words" in first[1]
    assert "in step 3 of 9" in first[1]


def test_an_error_before_the_first_step_is_reported_once(config, start_ranks, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    first, second = (rank.ended() for rank in start_ranks(2, ["train", config()]))
    assert first[0] == second[0] == 2
    assert first[1].endswith("would be overwritten; choose another folder\n")
    assert second[1] == ""
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_each_rank_draws_its_own_dropout_which_depends_on_seed_and_batch():
    def drawn(rank, batch, seed=3):
        seed_dropout(seed, batch, rank)
        return torch.rand(1).item()

    draws = [drawn(rank, batch) for rank in (0, 1, 2) for batch in (5, 6)]
    assert len(set(draws)) == 6
    assert draws == [drawn(rank, batch) for rank in (0, 1, 2) for batch in (5, 6)]
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
    with pytest.raises(ConfigError, match="what torchrun sets, got 'WORLD_SIZE'"):
        layout(options())
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert layout(options(devices=5)) == (6, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert layout(options(devices=5)) == (3, 2)


@pytest.mark.usefixtures("no_launcher")
def test_each_process_needs_a_clip():
    with (
        pytest.raises(ConfigError, match="at least 5, a clip for each of 5 processes, got 4"),
        join_processes(options(devices=5, batch_size=4)),
    ):
        pytest.fail("nothing is to be started")


@pytest.mark.usefixtures("no_launcher")
def test_processes_that_somebody_else_connected_are_counted():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with (
            pytest.raises(ConfigError, match="must have the 2 processes of the run, got 1"),
            join_processes(options(devices=2)),
        ):
            pytest.fail("nothing is to be started")
    finally:
        dist.destroy_process_group()


def test_processes_with_other_options_end_at_once_with_their_names(config, start_ranks, tmp_path):
    other = ["--set", "training.weight_decay=0.5"]
    first, second = (rank.ended() for rank in start_ranks(2, ["train", config()], last=other))
    assert first[0] == second[0] == 2
    assert "the processes must agree about training.weight_decay, got 0.1 and 0.5;" in first[1]
    assert second[1] == ""
    assert not (tmp_path / "run").exists()
