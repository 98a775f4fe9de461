"""The command line as a user meets it: its output, the files it leaves, its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import attrs
import pytest

from clipseq import PairLoss, register_loss

CONFIG = """
[data]
path = "{data}"
[model]
transformer_width = 8
transformer_layers = 1
transformer_heads = 2
context_length = 64
encoder_cfg = {{patch_frames = 8}}
[training]
out = "{out}"
max_steps = {steps}
batch_size = 4
accelerator = "cpu"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from clipseq.data import simulate

    folder = tmp_path_factory.mktemp("cli") / "data"
    shares = {"train": 0.5, "val": 0.2, "test": 0.2, "zeroshot": 0.1}
    simulate(folder, 30, seconds=5.0, split_shares=shares)
    return folder


def write_config(folder: Path, data: Path, steps: int = 3) -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIG.format(data=data, out=folder / "run", steps=steps))
    return path


def test_train_then_evaluate(clipseq, data, tmp_path):
    status, out, err = clipseq("train", write_config(tmp_path, data))
    assert status == 0
    assert f"clipseq evaluate {tmp_path / 'run'}" in out
    assert "finished already" not in out
    assert "training: 3/3  loss_clip" in err
    assert "Warning" not in err

    status, out, _ = clipseq("evaluate", tmp_path / "run", data)
    assert status == 0
    assert "radar to text R@1" in out
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    own = written["metrics"]["sequence"]
    assert own["order accuracy"]["chance"] == 0.5
    low, high = own["order accuracy"]["interval_95"]
    assert low <= own["order accuracy"]["value"] <= high

    status, out, _ = clipseq("evaluate", tmp_path / "run", "--json", "--split", "val")
    assert status == 0
    assert json.loads(out)["split"] == "val"


def test_explain_draws_a_clip_and_prints_its_score(clipseq, data, tmp_path):
    from clipseq import CLIP

    model = CLIP({"views": {"doppler_time": 64}, "patch_frames": 8}, transformer_width=8,
                 transformer_layers=1, transformer_heads=2)  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    clip, picture = "train-00003", tmp_path / "new" / "clip.png"
    status, out, _ = clipseq("explain", tmp_path / "model", data, "--clip", clip, "--out", picture)
    assert status == 0
    assert out.startswith("combined: ")
    assert "temporal" in out
    assert out.rstrip().endswith(f"written to {picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    options = ("--caption", "somebody waves", "--json")
    status, out, _ = clipseq("explain", tmp_path / "model", data, "--clip", clip, *options)
    assert status == 0
    assert json.loads(out)["y"]["words"] == ["somebody", "waves"]
    status, _, err = clipseq("explain", tmp_path / "model", data, "--clip", "nobody")
    assert status == 2
    assert "clip must be the id of a clip, such as 'train-00000', " in err


def test_a_run_is_not_overwritten(clipseq, data, tmp_path):
    config = write_config(tmp_path, data)
    assert clipseq("train", config)[0] == 0
    status, _, err = clipseq("train", config)
    assert status == 2
    assert err.startswith("clipseq: ")
    assert "clipseq train --resume" in err
    status, _, err = clipseq("train", "--resume", tmp_path / "run", "--out", tmp_path / "other")
    assert status == 2
    assert f"--out {tmp_path / 'other'} starts a new run" in err
    status, out, _ = clipseq("train", "--resume", tmp_path / "run")
    assert status == 0
    assert out.startswith("nothing to train: the run was finished already; to train on, raise ")
    assert clipseq("train", config, "--out", tmp_path / "other")[0] == 0
    assert (tmp_path / "other" / "model").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_resume_continues(clipseq, data, tmp_path):
    config = write_config(tmp_path, data, steps=2000)
    # The signal goes to a whole process, as if a terminal sent it.
    process = subprocess.Popen(
        [sys.executable, "-m", "clipseq", "train", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for line in process.stderr:  # wait for the first line of progress
        if "loss_total" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"continue with: clipseq train --resume {tmp_path / 'run'}" in err
    assert "Traceback" not in err
    done = len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1
    assert 1 <= done < 2000

    written = tmp_path / "run" / "config.toml"
    written.write_text(written.read_text().replace("max_steps = 2000", f"max_steps = {done + 2}"))
    status, _, err = clipseq("train", "--resume", tmp_path / "run")
    assert status == 0
    assert f"training: {done + 1}/{done + 2}" in err
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == done + 3


def test_a_folder_in_the_place_of_a_config_is_explained(clipseq, data, tmp_path):
    status, _, err = clipseq("train", data)
    assert status == 2
    assert f"{data} is a folder, and the configuration of a run is a TOML file; to train" in err
    assert f'have [data] path = "{data}" in that file' in err
    write_config(tmp_path, data)
    assert f"clipseq train --resume {tmp_path}" in clipseq("train", tmp_path)[2]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["train"], 2, "give either a CONFIG or --resume RUN"),
        (["train", "none.toml"], 2, "there is no config file none.toml"),
        (["train", "--resume", "none"], 2, "nothing to resume"),
        (["evaluate", "none"], 2, "run must be a run folder or a saved model, got none"),
        (["simulate", "--out", "x", "--clips", "0"], 2, "--clips"),
        (["trian"], 2, "trian"),
        (["bench", "locl"], 2, "did you mean 'local'?"),
        (
            ["bench", "local", "--device", "warp"],
            2,
            "device must be one that torch can compute on",
        ),
    ],
)
def test_an_error_is_one_line_and_a_status(clipseq, tmp_path, monkeypatch, arguments, status, said):
    monkeypatch.chdir(tmp_path)
    got, _, err = clipseq(*arguments)
    assert got == status
    assert said in err
    assert "Traceback" not in err


def test_a_typo_in_the_config_names_the_nearest_key(clipseq, data, tmp_path):
    config = write_config(tmp_path, data)
    config.write_text(config.read_text().replace("batch_size", "bach_size"))
    status, _, err = clipseq("train", config)
    assert status == 2
    assert "'training.bach_size': did you mean 'batch_size'?" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('[model]\nsequence_similarity_type = "locl"', "did you mean 'local'?"),
        ('accelerator = "warp"', "training.accelerator = 'warp'"),
    ],
)
def test_a_wrong_model_or_trainer_is_status_2(clipseq, data, tmp_path, wrong, said):
    config = write_config(tmp_path, data)
    replaced = "[model]" if "[model]" in wrong else 'accelerator = "cpu"'
    config.write_text(config.read_text().replace(replaced, wrong))
    status, _, err = clipseq("train", config)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(clipseq):
    status, _, err = clipseq("--debug", "train", "none.toml")
    assert status == 2
    assert "Traceback" in err


def test_an_unfinished_run_cannot_be_evaluated(clipseq, data, tmp_path):
    config = write_config(tmp_path, data)
    (tmp_path / "run").mkdir()
    config.rename(tmp_path / "run" / "config.toml")
    status, _, err = clipseq("evaluate", tmp_path / "run")
    assert status == 1
    assert "clipseq train --resume" in err


def test_similarities_lists_the_five(clipseq):
    status, out, _ = clipseq("similarities", "--json")
    assert status == 0
    listed = {s["name"]: s for s in json.loads(out)["similarities"]}
    assert {"global", "local", "attention", "temporal", "combined"} <= listed.keys()
    assert listed["local"]["options"]["window"] == 16
    assert listed["global"]["default_weight"] == 0.1
    assert listed["combined"]["default_weight"] is None
    assert listed["temporal"]["distribution"] == "clipseq"
    status, out, _ = clipseq("similarities")
    assert status == 0
    assert "temporal" in out
    assert "gamma=0.1" in out


@pytest.mark.usefixtures("fresh_registry")
def test_losses_lists_the_built_in_and_the_registered(clipseq):
    class MarginLoss(PairLoss):
        """A margin between positives and negatives."""

        def __init__(self, margin: float = 0.25, init_scale: float = 1.0) -> None:
            super().__init__(init_scale=init_scale)

        def loss(self, scores, positives):
            return scores.mean()

    register_loss("margin", MarginLoss)
    status, out, _ = clipseq("losses", "--json")
    assert status == 0
    listed = {loss["name"]: loss for loss in json.loads(out)["losses"]}
    assert {"clip", "siglip", "margin"} == listed.keys()
    assert listed["margin"]["options"] == {"margin": 0.25, "init_scale": 1.0}
    assert listed["margin"]["distribution"] == "this process"
    assert listed["margin"]["summary"] == "A margin between positives and negatives."
    assert listed["clip"]["starts_at_temperature"] is True
    assert listed["siglip"]["starts_at_temperature"] is False
    status, out, _ = clipseq("losses")
    assert status == 0
    assert "margin=0.25" in out


@pytest.mark.usefixtures("fresh_registry")
def test_similarities_names_the_disabled_plugins(clipseq, monkeypatch):
    monkeypatch.setenv("CLIPSEQ_DISABLE", "global,local,attention,temporal,combined")
    status, out, _ = clipseq("similarities")
    assert status == 0
    assert "none registered: CLIPSEQ_DISABLE leaves out attention, combined" in out


@pytest.mark.usefixtures("fresh_registry")
def test_similarities_reports_the_plugins_that_failed(clipseq, tmp_path, monkeypatch):
    """An installed plugin that cannot be imported is listed with its cause."""
    info = tmp_path / "clipseq_broken-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clipseq-broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[clipseq]\nbroken = clipseq_broken\n")
    (tmp_path / "clipseq_broken.py").write_text("raise RuntimeError('no such radar')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, out, err = clipseq("similarities")
    assert status == 0
    assert "could not be loaded: 'broken' of clipseq-broken 1.2: RuntimeError: no such radar" in out
    assert "temporal" in out
    assert err == ""
    failed = json.loads(clipseq("similarities", "--json")[1])["failed"]
    assert [plugin["distribution"] for plugin in failed] == ["clipseq-broken"]


def test_simulate_writes_a_data_set(clipseq, tmp_path):
    status, out, _ = clipseq("simulate", "--out", tmp_path / "data", "--clips", "20")
    assert status == 0
    assert "15 train, 1 val, 2 test, 2 zeroshot" in out


def test_demo_shows_finished_results_and_names_the_command_that_continues(clipseq, tmp_path):
    from clipseq.demo import SMALL

    out = tmp_path / "demo"
    out.mkdir()
    (out / "data").mkdir()
    status, _, err = clipseq("demo", "--small", "--out", out)
    assert status == 2
    assert f"continue an interrupted demo with: clipseq demo --small --resume --out {out};" in err
    settings = {"size": attrs.asdict(SMALL), "seed": 0}
    (out / "metrics.json").write_text(json.dumps(settings))
    (out / "report.txt").write_text("order accuracy 0.739")
    status, shown, err = clipseq("demo", "--small", "--out", out)
    assert status == 0
    assert shown.startswith("order accuracy 0.739\n\n")
    assert shown.endswith(f"in a new folder:\n  clipseq demo --small --out {out}-2\n")
    assert err == ""


def test_version_is_that_of_the_distribution(clipseq):
    assert clipseq("--version") == (0, f"{version('clipseq')}\n", "")
