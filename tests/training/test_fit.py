"""Whole runs: their folder, numbers and continuation, and how they stop early."""

import csv
import itertools
import os
import shutil
import signal
import tomllib
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from clipseq import CLIP, Similarity, register_similarity
from clipseq.data import MapDataset, collate, simulate
from clipseq.encoders import SignalTower, TextTower
from clipseq.errors import CheckpointError, ClipseqError, ConfigError, DataError
from clipseq.training import (
    DataConfig,
    RunConfig,
    RunFolder,
    SimulatedData,
    TrainingInterrupted,
    read_config,
    train,
    write_config,
)
from clipseq.training.models import pin_options
from clipseq.training.nonfinite import NonFiniteLoss
from clipseq.training.optimizer import warmup_cosine
from clipseq.training.stream import ShuffledBatches


def rows(config):
    with RunFolder(config.training.out).metrics.open(newline="") as lines:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(lines)
        ]


def same_weights(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@attrs.frozen(eq=False)
class Finished:
    """A finished run: its configuration, its model, and the steps that were reported."""

    config: RunConfig
    model: CLIP
    seen: list[int]


@pytest.fixture(scope="session")
def finished(dataset, small_run_in, tmp_path_factory):
    """A run of two steps."""
    torch.manual_seed(0)
    seen = []
    config = small_run_in(tmp_path_factory.mktemp("finished"), max_steps=2)
    model = train(config, dataset=dataset, progress=lambda step, *_: seen.append(step))
    return Finished(config, model, seen)


@pytest.fixture
def finished_copy(finished, tmp_path):
    """The configuration of a copy of it, in the folder where `small_run` has its runs."""
    shutil.copytree(finished.config.training.out, tmp_path / "run")
    options = attrs.evolve(finished.config.training, out=tmp_path / "run")
    return attrs.evolve(finished.config, training=options)


def with_options(config, **changes):
    return attrs.evolve(config, training=attrs.evolve(config.training, **changes))


@pytest.fixture(scope="session")
def whole(dataset, small_run_in, tmp_path_factory):
    """An uninterrupted run of six steps, with dropout and accumulated batches."""
    config = small_run_in(tmp_path_factory.mktemp("whole"), accumulate=2)
    seen = []
    model = train(config, dataset=dataset, progress=lambda step, *_: seen.append(step))
    return Finished(config, model, seen)


def test_a_run_leaves_its_folder(whole):
    config, model = whole.config, whole.model
    folder = RunFolder(config.training.out)
    assert whole.seen == [1, 2, 3, 4, 5, 6]
    expected = pin_options(config)
    assert pin_options(read_config(folder.config)) == attrs.evolve(
        expected, data=attrs.evolve(config.data, path=read_config(folder.config).data.path)
    )
    assert tomllib.loads(folder.config.read_text())["training"]["max_steps"] == 6
    assert folder.last.exists()
    assert folder.best.exists()
    assert list(folder.tensorboard.glob("events*"))
    table = rows(config)
    assert [row["step"] for row in table] == [str(step) for step in range(1, 7)]
    assert {
        "loss_clip", "loss_seq", "loss_total", "scale", "seq_scale", "weight/temporal",
        "learning_rate", "gradient_norm", "val_loss_clip", "val_loss_seq", "val_loss_total",
    } <= table[0].keys()  # fmt: skip
    assert [bool(row["val_loss_total"]) for row in table] == [False, True] * 3
    assert not model.training
    saved = CLIP.from_pretrained(folder.model)
    assert same_weights(saved, model)
    assert saved.tokenizer.encode("a person waves") == model.tokenizer.encode("a person waves")
    text = ["a person waves"]
    assert "person" in saved.tokenizer.tokens(text[0])


def test_a_batch_larger_than_the_training_split_is_cut_with_a_word(dataset, small_run):
    clips = len(dataset.subset("train"))
    with pytest.warns(UserWarning, match=f"batch_size is 64, but .* has {clips} clips: each"):
        train(small_run(batch_size=64, max_steps=1), dataset=dataset)
    train(small_run("whole", batch_size=clips, max_steps=1), dataset=dataset)


@pytest.mark.usefixtures("in_float64")
def test_losses_are_those_of_a_plain_loop(dataset, small_run):
    """The loop takes the same steps by hand: AdamW, clipping, accumulation, warm-up and cosine."""
    config = small_run(
        accumulate=2, gradient_clip=0.5, seed=5, max_steps=4, checkpoint_every=9,
        augment={"strength": 0.0}, model={"encoder_cfg": {"patch_frames": 8}},
    )  # fmt: skip
    trained = train(config, dataset=dataset)

    clips = dataset.subset("train")
    torch.manual_seed(5)
    model = CLIP(
        {"views": dataset.views, "patch_frames": 8},
        transformer_width=8,
        transformer_layers=1,
        transformer_heads=2,
        context_length=48,
        tokenizer=trained.tokenizer,
    )
    no_decay = [p for p in model.parameters() if p.ndim < 2]
    decay = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    rates = [0.5, 1.0, 1.0, 0.5]  # of 5e-4: two steps of warm-up, then half a cosine over two
    stream = iter(ShuffledBatches(len(clips), 4, 8, seed=5))
    losses = []
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * rate
        step_losses = []
        for _ in range(2):
            loss = model.training_step(collate([clips[i] for i in next(stream)]))
            (loss / 2).backward()
            step_losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(step_losses) / 2)
    logged = rows(config)
    np.testing.assert_allclose([float(r["loss_total"]) for r in logged], losses, rtol=1e-8)
    np.testing.assert_allclose(
        [float(r["learning_rate"]) for r in logged], [5e-4 * rate for rate in rates], rtol=1e-6
    )
    mine, theirs = model.state_dict(), trained.state_dict()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one(dataset, small_run, whole, stop_after):
    """Ctrl-C comes between validations, at one, or in mid-epoch, with dropout and accumulation."""

    def press(step, steps, row):
        if step == stop_after:
            signal.raise_signal(signal.SIGINT)

    cut = small_run("cut", accumulate=2)
    with pytest.raises(TrainingInterrupted, match=r"clipseq train --resume .*cut"):
        train(cut, dataset=dataset, progress=press)
    assert torch.load(RunFolder(cut.training.out).last)["global_step"] == stop_after
    resumed = train(cut, dataset=dataset, resume=True)
    assert rows(cut) == rows(whole.config)
    assert same_weights(resumed, whole.model)
    best = [torch.load(RunFolder(c.training.out).best) for c in (whole.config, cut)]
    assert best[0]["global_step"] == best[1]["global_step"]


def test_a_run_that_is_done_is_only_saved_again(dataset, finished, finished_copy):
    resumed = train(finished_copy, dataset=dataset, resume=True)
    assert same_weights(resumed, finished.model)
    assert rows(finished_copy) == rows(finished.config)


def test_a_run_that_is_done_continues_if_more_steps_are_wanted(dataset, finished_copy):
    longer = with_options(finished_copy, max_steps=5)
    seen = []
    train(longer, dataset=dataset, resume=True, progress=lambda step, *_: seen.append(step))
    assert seen == [3, 4, 5]
    assert [row["step"] for row in rows(longer)] == ["1", "2", "3", "4", "5"]


def test_a_resumed_run_does_what_its_config_says_now(dataset, small_run):
    def stop(step, steps, row):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    config = small_run(log_norms=False)
    with pytest.raises(TrainingInterrupted):
        train(config, dataset=dataset, progress=stop)
    now = {"learning_rate": 1e-5, "weight_decay": 0.5, "log_norms": True}
    changed = attrs.evolve(config, training=attrs.evolve(config.training, **now))
    train(changed, dataset=dataset, resume=True)
    table = rows(changed)
    rates = [warmup_cosine(step, warmup=2, total=6) for step in range(6)]
    expected = [5e-4 * rate for rate in rates[:3]] + [1e-5 * rate for rate in rates[3:]]
    np.testing.assert_allclose([float(row["learning_rate"]) for row in table], expected, rtol=1e-6)
    state = torch.load(RunFolder(changed.training.out).last)["optimizer"]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.5, 0.0]
    assert [row["norm/text_pooled"] == "" for row in table] == [True] * 3 + [False] * 3


def test_a_run_killed_before_its_first_checkpoint_starts_again(dataset, finished, finished_copy):
    folder = RunFolder(finished_copy.training.out)
    shutil.rmtree(folder.checkpoints)
    with pytest.warns(UserWarning, match="no checkpoint yet; the run starts again at step 1"):
        again = train(finished_copy, dataset=dataset, resume=True)
    assert same_weights(again, finished.model)


@pytest.mark.parametrize("content", [None, b"", b"cut in the middle"])
def test_a_run_without_its_last_checkpoint_continues_from_the_best(
    dataset, small_run, finished, finished_copy, content
):
    folder = RunFolder(finished_copy.training.out)
    if content is None:
        folder.last.unlink()
    else:
        folder.last.write_bytes(content)
    step = torch.load(folder.best, weights_only=True)["global_step"]
    with pytest.warns(UserWarning, match=rf"continues from .*best.ckpt, after step {step}$"):
        again = train(finished_copy, dataset=dataset, resume=True)
    assert same_weights(again, finished.model)


def test_with_both_checkpoints_damaged_the_run_says_how_to_start_again(dataset, finished_copy):
    folder = RunFolder(finished_copy.training.out)
    for path in (folder.last, folder.best):
        path.write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"start again from step 1: rm -r .*checkpoints &&"):
        train(finished_copy, dataset=dataset, resume=True)


@pytest.mark.parametrize(("before", "after"), [(4, 4), (4, 8), (8, 4), (8, 5)])
def test_epochs_mean_passes_over_the_clips_also_with_another_batch_size(
    dataset, small_run, before, after
):
    clips = len(dataset.subset("train"))
    halfway = 2 * (clips // before)
    config = small_run("run", max_steps=None, epochs=4, batch_size=before, checkpoint_every=1)

    def press(step, steps, row):
        if step == halfway:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        train(config, dataset=dataset, progress=press)
    changed = attrs.evolve(config, training=attrs.evolve(config.training, batch_size=after))
    seen = []
    train(changed, dataset=dataset, resume=True, progress=lambda *found: seen.append(found))
    assert [step for step, *_ in seen] == list(range(halfway + 1, seen[-1][1] + 1))
    assert len(seen) == 2 * (clips // after)
    rates = [float(row["learning_rate"]) for row in rows(config)]
    assert len(rates) == halfway + len(seen)
    assert max(abs(a - b) for a, b in itertools.pairwise(rates[1:])) < 2 * rates[1] / 3


def test_a_changed_data_set_is_noticed(dataset, finished_copy):
    fewer = dataset.subset("train").spread(9), dataset.subset("val")
    clips = [part[i] for part in fewer for i in range(len(part))]
    changed = MapDataset.from_clips(clips, frame_rate=dataset.frame_rate)
    with pytest.warns(UserWarning, match="the training clips are not those"):
        train(finished_copy, dataset=changed, resume=True)


class Constant(Similarity):
    """A plugin that is installed or removed between two starts of a run."""

    def score(self, x, y):
        return x.values.sum((1, 2))[:, None] * y.values.sum((1, 2)) * 0

    def align(self, x, y):
        return x.values.new_zeros(len(x.values), x.mask.shape[1], y.mask.shape[1])


def test_a_plugin_that_is_installed_later_changes_no_run(dataset, small_run, fresh_registry):
    def press(step, steps, row):
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    whole, cut = small_run("whole", max_steps=3), small_run("cut", max_steps=3)
    expected = train(whole, dataset=dataset)
    with pytest.raises(TrainingInterrupted):
        train(cut, dataset=dataset, progress=press)
    register_similarity("constant", Constant)
    # Resume as the command line does, with the configuration in the folder.
    settings = read_config(RunFolder(cut.training.out).config)
    assert same_weights(train(settings, dataset=dataset, resume=True), expected)


def test_a_checkpoint_of_another_model_is_named(dataset, small_run, finished_copy):
    folder = RunFolder(finished_copy.training.out)
    before = folder.config.read_text()
    other = small_run(max_steps=2, model={"context_length": 50, "use_siglip": True})
    with pytest.raises(CheckpointError) as error:
        train(other, dataset=dataset, resume=True)
    assert f"{folder.last} does not fit the model that {folder.config} describes" in str(
        error.value
    )
    assert "missing: clip_loss_fn." in str(error.value)
    assert "of another shape: y_encoder.positions" in str(error.value)
    assert folder.config.read_text() == before


def test_a_kill_between_two_checkpoints_leaves_the_best(dataset, small_run, monkeypatch):
    replace, moved = os.replace, []

    def killed(source, target):
        replace(source, target)
        if str(target).endswith(".ckpt"):
            moved.append(target)
            raise KeyboardInterrupt

    config = small_run(max_steps=2)
    monkeypatch.setattr("clipseq.engine.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset=dataset)
    assert len(moved) == 1
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"last.ckpt is missing; the run continues from .*best"):
        train(config, dataset=dataset, resume=True)
    assert torch.load(RunFolder(config.training.out).best)["global_step"] == 2


def test_relative_paths_are_made_absolute(dataset, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small_run(max_steps=1)
    data, options = DataConfig(path=Path("data")), attrs.evolve(config.training, out=Path("run"))
    train(attrs.evolve(config, data=data, training=options), dataset=dataset)
    monkeypatch.chdir("/")
    written = read_config(tmp_path / "run" / "config.toml")
    assert (written.data.path, written.training.out) == (tmp_path / "data", tmp_path / "run")


def test_ctrl_c_in_the_last_step_leaves_a_finished_run(dataset, small_run):
    config = small_run(max_steps=2)

    def press(step, steps, row):
        if step == steps:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, dataset=dataset, progress=press)
    assert RunFolder(config.training.out).model.exists()


def test_nothing_is_overwritten(dataset, small_run, finished):
    with pytest.raises(ClipseqError, match="would be overwritten; continue it with"):
        train(finished.config, dataset=dataset)
    other = small_run("mine")
    other.training.out.mkdir()
    (other.training.out / "thesis.txt").write_text("mine")
    with pytest.raises(ClipseqError, match="would be overwritten; choose another folder"):
        train(other, dataset=dataset)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(small_run("nowhere"), dataset=dataset, resume=True)


def test_a_corrupt_checkpoint_is_named(dataset, finished_copy):
    last = RunFolder(finished_copy.training.out).last
    RunFolder(finished_copy.training.out).best.unlink()
    last.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read"):
        train(finished_copy, dataset=dataset, resume=True)
    torch.save({"state_dict": {}, "global_step": 2}, last)
    with pytest.raises(CheckpointError, match="must hold best, .* got global_step, state_dict"):
        train(finished_copy, dataset=dataset, resume=True)


def test_a_checkpoint_is_plain_tensors_and_numbers(finished):
    """torch.load reads it with weights_only, and a CLIP accepts its weights under their names."""
    checkpoint = torch.load(RunFolder(finished.config.training.out).last, weights_only=True)
    assert checkpoint.keys() == {
        "model", "optimizer", "scaler", "global_step", "best", "seconds", "epochs", "clips"
    }  # fmt: skip
    assert checkpoint["model"].keys() == finished.model.state_dict().keys()
    assert (checkpoint["global_step"], checkpoint["scaler"]) == (2, {})


def test_nan_names_the_step_and_the_clips(dataset, small_run):
    # A data set checks its files; a map that goes bad later is what training has to catch.
    clips = [attrs.evolve(clip) for clip in dataset if clip.label is None]
    broken = MapDataset.from_clips(clips)
    bad = next(clip for clip in clips if clip.split == "train")
    bad.signal["doppler_time"][3, 4] = np.nan
    with pytest.raises(NonFiniteLoss, match=rf"doppler_time.*clips: {bad.id}$"):
        train(small_run(), dataset=broken)


def test_a_loss_that_explodes_names_the_step(dataset, small_run, monkeypatch):
    steps = iter(range(1, 10))

    def explode(self, batch, batch_idx=0):
        bad = next(steps) == 3
        self.metrics = {"loss_total": torch.tensor(1.0)}
        return sum(p.sum() for p in self.parameters()) * (float("nan") if bad else 0.0)

    monkeypatch.setattr(CLIP, "training_step", explode)
    config = small_run(checkpoint_every=100)
    with pytest.raises(NonFiniteLoss, match=r"loss of step 3 is nan .*train-0.*learning_rate"):
        train(config, dataset=dataset)


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def test_a_gradient_that_explodes_is_not_stepped_along(dataset, small_run, monkeypatch):
    steps, plain = iter(range(1, 10)), CLIP.training_step

    def explode(self, batch, batch_idx=0):
        loss = plain(self, batch, batch_idx)
        return _Overflow.apply(loss) if self.training and next(steps) == 4 else loss

    monkeypatch.setattr(CLIP, "training_step", explode)
    config = small_run()
    with pytest.raises(NonFiniteLoss, match=r"gradient of step 4 has norm nan.*learning_rate"):
        train(config, dataset=dataset)
    left = torch.load(RunFolder(config.training.out).last)
    assert left["global_step"] == 2
    assert all(bool(value.isfinite().all()) for value in left["model"].values())
    # Then take the other steps with the real gradients, from the last good checkpoint.
    monkeypatch.undo()
    train(config, dataset=dataset, resume=True)
    assert len(rows(config)) == 6


def test_weights_that_explode_are_not_saved(dataset, small_run):
    config = small_run(learning_rate=1e30, warmup_steps=0, max_steps=1)
    said = r"after step 1 (the weights .* are not finite|the validation loss_.* is nan).*Lower"
    with pytest.raises(NonFiniteLoss, match=said):
        train(config, dataset=dataset)
    folder = RunFolder(config.training.out)
    assert not folder.last.exists()
    assert not folder.model.exists()
    assert len(rows(config)) == 1


def test_mixed_precision_trains(dataset, small_run, finished):
    config = small_run(precision="bf16-mixed", max_steps=2)
    model = train(config, dataset=dataset)
    ours, theirs = ([float(r["loss_total"]) for r in rows(c)] for c in (config, finished.config))
    rounding = torch.finfo(torch.bfloat16).eps  # the losses differ by about two of it at most
    np.testing.assert_allclose(ours, theirs, rtol=2 * rounding)
    assert ours != theirs
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_warning_that_matters_comes_through(dataset, small_run):
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU"):
        train(small_run(precision="16-mixed", max_steps=1), dataset=dataset)


def test_a_loss_scaler_skips_a_step_that_overflows(dataset, small_run, monkeypatch):
    """The scale is lowered then, and the resumed run continues with it."""

    def scaled(precision, device, *, warn=True):
        autocast = partial(torch.autocast, "cpu", enabled=False)
        return autocast, torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-30)

    monkeypatch.setattr("clipseq.training.loop.mixed_precision", scaled)
    config = small_run(max_steps=1)
    train(config, dataset=dataset)
    (row,) = rows(config)
    assert not np.isfinite(float(row["gradient_norm"]))
    left = torch.load(RunFolder(config.training.out).last)
    assert left["scaler"]["scale"] == 2.0**97
    assert left["optimizer"]["state"] == {}
    train(with_options(config, max_steps=5, checkpoint_every=100), dataset=dataset, resume=True)
    last = torch.load(RunFolder(config.training.out).last)
    assert 1 < last["scaler"]["scale"] <= 2.0**97
    assert any(not torch.equal(v, left["model"][k]) for k, v in last["model"].items())


def test_workers_change_nothing(dataset, small_run, finished):
    train(small_run(max_steps=2, num_workers=2), dataset=dataset)
    assert rows(small_run()) == rows(finished.config)


def test_a_plain_model_trains_without_validation_and_on_some_views(dataset, small_run):
    clips = [clip for clip in dataset if clip.split == "train"]
    views = {"doppler_time": dataset.views["doppler_time"]}
    config = small_run(
        model={
            "use_sequence_similarity": False,
            "encoder_cfg": {"patch_frames": 8, "views": views},
        },
        max_steps=2,
        log_norms=True,
    )
    model = train(config, dataset=MapDataset.from_clips(clips))
    assert model.x_encoder.config.views == views
    table = rows(config)
    assert not any("val_" in name and row[name] for row in table for name in row)
    assert "norm/radar_pooled" in table[0]
    assert "loss_seq" not in table[0]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"transformer_widht": 8}, "model.transformer_widht': did you mean 'transformer_width'?"),
        ({"transformer_width": "8"}, "model.transformer_width must be int, got '8'"),
        ({"encoder_cfg": {"patchframes": 8}}, "model.encoder_cfg.patchframes': did you mean"),
        ({"text_cfg": {"causal": 1}}, "model.text_cfg.causal"),
        ({"encoder_cfg": {"views": {"dopler_time": 64}}}, "did you mean 'doppler_time'?"),
        (
            {"encoder_cfg": {"views": {"doppler_time": 60}}},
            "64 bins that it has in the data, got 60",
        ),
    ],
)
def test_a_wrong_model_option_is_named(dataset, small_run, model, said):
    with pytest.raises(ConfigError) as error:
        train(small_run(model=model), dataset=dataset)
    assert said in str(error.value)


WRONG = [
    ({"model": {"sequence_similarity_type": "temporl"}}, "did you mean 'temporal'?"),
    ({"model": {"sequence_similarity_options": {"part": {}}}}, "similarity_options: .*'parts'"),
    ({"model": {"encoder_cfg": {"views": {"dopler_time": 64}}}}, "did you mean 'doppler_time'?"),
    ({"model": {"transformer_heads": 3}}, "heads"),
    ({"model": {"transformer_layers": 0}}, "transformer_layers must be at least 1, got 0"),
    ({"model": {"context_length": 0}}, "context_length must be at least 1, got 0"),
    ({"model": {"text_cfg": {"pretrained": "nowhere"}}}, "must be a Hugging Face model directory"),
    ({"accelerator": "warp"}, "training.accelerator = 'warp': You selected an invalid"),
    (
        {"accelerator": "mps" if torch.cuda.is_available() else "cuda"},
        "training.accelerator = .* can not run on your system",
    ),
]


@pytest.mark.parametrize(
    ("wrong", "said"), [*WRONG, ({"model": {"context_length": 3}}, "train.*3")]
)
def test_a_config_that_is_rejected_leaves_no_folder(dataset, small_run, wrong, said):
    with pytest.raises(ValueError, match=said):
        train(small_run(**wrong), dataset=dataset)
    assert not small_run().training.out.exists()


@pytest.mark.parametrize(
    ("split", "change", "said"),
    [
        (
            "val",
            {"caption": "a " * 49},
            "the split 'val': text caption 0 must have at most 48",
        ),
        (
            "test",
            {"caption": "a " * 49},
            "the split 'test': text caption 0 must have at most 48",
        ),
        (
            "zeroshot",
            {"caption": "a " * 49},
            "the split 'zeroshot': text caption 0 must have",
        ),
        (
            "test",
            {"permuted": ("a", "a " * 49)},
            "the split 'test', permuted captions of its clip 0: text caption 1 must have",
        ),
        ("test", None, "the class caption of 'long': text caption 0 must have at most 48"),
    ],
)
def test_what_could_not_be_evaluated_is_not_trained(dataset, small_run, split, change, said):
    clips, classes = list(dataset), dict(dataset.class_captions)
    if change is None:
        classes["long"] = "a " * 49
    else:
        first = next(i for i, clip in enumerate(clips) if clip.split == split)
        clips[first] = attrs.evolve(clips[first], actions=(), spans=(), **change)
    # A split of one clip is not used for validation, but may be used for evaluation.
    val = next(clip for clip in clips if clip.split == "val")
    clips = [clip for clip in clips if clip.split != "val" or clip is val]
    with pytest.raises(ConfigError, match=said):
        train(small_run(max_steps=1), dataset=MapDataset.from_clips(clips, class_captions=classes))
    assert not small_run().training.out.exists()


def test_a_run_that_has_begun_goes_on_with_what_it_trains_on(dataset, finished_copy):
    longer = with_options(finished_copy, max_steps=3)
    clips = [
        attrs.evolve(clip, caption="a " * 49, actions=(), spans=(), permuted=())
        if clip.split == "test"
        else clip
        for clip in dataset
    ]
    changed = MapDataset.from_clips(clips, class_captions=dataset.class_captions)
    train(longer, dataset=changed, resume=True)
    assert [row["step"] for row in rows(longer)] == ["1", "2", "3"]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_config_that_is_rejected_simulates_nothing(small_run, wrong, said):
    data = DataConfig(simulated=SimulatedData(clips=80))
    with pytest.raises(ValueError, match=said):
        train(attrs.evolve(small_run(**wrong), data=data))
    assert not small_run().training.out.exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_on_simulated_data_builds_one_model(dataset, small_run, monkeypatch, resume):
    built = []
    for kind in (CLIP, SignalTower, TextTower):

        def count(self, *arguments, plain=kind.__init__, **options):
            if torch.empty(0).device.type != "meta":  # saving compares with a model without weights
                built.append(type(self))
            plain(self, *arguments, **options)

        monkeypatch.setattr(kind, "__init__", count)
    monkeypatch.setattr("clipseq.training.prepare.open_dataset", lambda *_, **__: dataset)
    data = DataConfig(simulated=SimulatedData(clips=len(dataset)))
    config = attrs.evolve(small_run(max_steps=1), data=data)
    if resume:
        write_config(config, RunFolder(config.training.out).config)
    train(config, resume=resume)
    assert built == [CLIP, SignalTower, TextTower]


def test_a_recording_that_is_missing_leaves_no_folder(small_run, tmp_path):
    motion = tmp_path / "none.npz"
    data = DataConfig(simulated=SimulatedData(clips=20, motion=motion))
    with pytest.raises(DataError, match="none.npz"):
        train(attrs.evolve(small_run(), data=data))
    assert not small_run().training.out.exists()


@pytest.fixture
def short_clips(monkeypatch):
    """Simulate clips of 5 s, which take half the time."""
    monkeypatch.setattr("clipseq.training.datasets.simulate", partial(simulate, seconds=5.0))


@pytest.mark.usefixtures("short_clips")
def test_what_only_the_clips_tell_is_said_with_how_to_go_on(small_run):
    data = DataConfig(simulated=SimulatedData(clips=20))
    config = attrs.evolve(small_run(max_steps=1, model={"context_length": 3}), data=data)
    folder = RunFolder(config.training.out)
    with pytest.raises(
        ConfigError, match=rf"context_length.*correct {folder.config} and .*--resume"
    ):
        train(config)
    written = folder.config.read_text()
    folder.config.write_text(written.replace("context_length = 3", "context_length = 48"))
    train(read_config(folder.config), resume=True)
    assert folder.model.exists()


def test_one_clip_cannot_be_trained_on(dataset, small_run):
    clips = [dataset.subset("train")[0], dataset.subset("test")[0]]
    with pytest.raises(DataError, match="at least two clips in the split 'train', found 1"):
        train(small_run(), dataset=MapDataset.from_clips(clips))


def test_without_lightning_the_error_says_what_to_install(dataset, small_run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClipseqError, match=r"pip install 'clipseq\[train\]'"):
        train(small_run(), dataset=dataset)


@pytest.mark.usefixtures("short_clips")
def test_ctrl_c_while_simulating_loses_nothing(small_run, monkeypatch):
    config = small_run(max_steps=2)
    config = attrs.evolve(config, data=DataConfig(simulated=SimulatedData(clips=20)))

    def press(done, clips):
        assert clips == 20
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match=r"stopped while simulating.*--resume"):
        train(config, data_progress=press)
    folder = RunFolder(config.training.out)
    assert not folder.last.exists()
    train(read_config(folder.config), resume=True)
    assert folder.model.exists()
    assert MapDataset(folder.data).splits["train"] == 15
