"""A call leaves its caller's world unchanged, whether it returns or raises."""

import os
import signal
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from photograph import same_world

import clipseq
from clipseq import CLIP, Encoded, Index, Similarity
from clipseq import __main__ as entry
from clipseq.data import simulate
from clipseq.evaluation import evaluate
from clipseq.evaluation.validation import validation_metrics
from clipseq.testing import check_similarity
from clipseq.testing.checks import CHECKS
from clipseq.training import TrainingInterrupted, evaluate_run, load_model, plan, train
from clipseq.training.loop import validate
from clipseq.training.stream import validation_batches

pytestmark = pytest.mark.usefixtures("unusual")


def interrupt(*_):
    raise KeyboardInterrupt


def mixed_modes(model: CLIP) -> CLIP:
    """Freeze one tower in eval mode in a model that is otherwise in training mode."""
    model.train()
    model.y_encoder.eval()
    for parameter in model.y_encoder.parameters():
        parameter.requires_grad_(False)
    return model


@pytest.fixture
def model(finished):
    return mixed_modes(CLIP.from_pretrained(finished.run / "model"))


@pytest.fixture
def breaking(model):
    """The model, with a signal tower that is interrupted."""
    model.x_encoder.register_forward_hook(interrupt)
    return model


def test_training(finished, tmp_path):
    with same_world():
        train(finished.config(tmp_path / "run"))
    with same_world():
        train(finished.config(tmp_path / "run", max_steps=3), resume=True)
    with same_world():
        plan(finished.config(tmp_path / "other"))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_that_is_interrupted(workers, finished, tmp_path):
    config = finished.config(tmp_path / "run", num_workers=workers)
    with same_world(), pytest.raises(KeyboardInterrupt):
        train(config, progress=interrupt)
    config = finished.config(tmp_path / "again", num_workers=workers)
    with same_world(), pytest.raises(TrainingInterrupted):
        train(config, progress=lambda *_: os.kill(os.getpid(), signal.SIGINT))


def test_training_that_fails(finished, tmp_path):
    with same_world(), pytest.raises(clipseq.ConfigError):
        train(finished.config(finished.run))
    config = finished.config(tmp_path / "run", learning_rate=1e30, warmup_steps=0, max_steps=30)
    with same_world(), pytest.raises(clipseq.ClipseqError, match="step"):
        train(config)


def test_validation_keeps_the_mode_of_each_module(model, finished):
    clips = finished.dataset.subset("val")
    with same_world(model):
        validation_metrics(model, clips)
    batches = list(validation_batches(clips, 4, model, 0, 1))
    with same_world(model):
        validate(model, batches, SimpleNamespace(to_device=lambda batch: batch))


@pytest.mark.parametrize("call", [evaluate, validation_metrics])
def test_evaluation(call, model, breaking, finished):
    with same_world(breaking), pytest.raises(KeyboardInterrupt):
        call(breaking, finished.dataset)


def test_evaluation_of_a_run(finished, model):
    with same_world(model):
        evaluate(model, finished.dataset)
    with same_world():
        evaluate_run(finished.run)
    with same_world():
        load_model(finished.run)
    with same_world(), pytest.raises(ValueError, match="run"):
        evaluate_run(finished.data / "nothing")


def test_simulation(tmp_path):
    with same_world():
        simulate(tmp_path / "one", clips=2, seconds=5.0)
    with same_world(), pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "two", clips=2, seconds=5.0, progress=interrupt)
    with same_world(), pytest.raises(ValueError, match="clips"):
        simulate(tmp_path / "three", clips=-1)


def test_encoding(model, finished):
    with same_world(model):
        model.encode("text", ["a", "b"])
    with same_world(model):
        model.encode("radar", finished.dataset)
    with same_world(model), pytest.raises(TypeError, match=r"items\[1\]"):
        model.encode("text", ["a", 3])


def test_encoding_that_is_interrupted(breaking, finished):
    with same_world(breaking), pytest.raises(KeyboardInterrupt):
        breaking.encode("radar", finished.dataset)
    with same_world(breaking), pytest.raises(KeyboardInterrupt):
        breaking.explain(finished.dataset[0], "walks")


def test_explaining(model, finished, tmp_path):
    with same_world(model):
        model.explain(finished.dataset[0], "someone walks").plot()
    with same_world(model), pytest.raises((TypeError, ValueError)):
        model.explain({"range_time": np.ones((3, 4))}, "walks")


def test_saving_and_loading(model, tmp_path):
    with same_world(model):
        model.save_pretrained(tmp_path / "model")
    with same_world():
        CLIP.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    with same_world(), pytest.raises(clipseq.CheckpointError):
        CLIP.from_pretrained(tmp_path / "model")


def test_an_index(model, finished, tmp_path):
    model.eval()
    queries, items = model.encode("text", ["a"]), model.encode("radar", finished.dataset)
    with same_world(model):
        index = Index.create(tmp_path / "index", model)
        index.add(items)
        index.search(queries, k=3)
    with same_world(model), pytest.raises(ValueError, match="ids"):
        index.add(items, ids=["a"])
    with same_world(model):
        Index.open(tmp_path / "index", model).search(queries, k=3)
    with same_world():
        items.save(tmp_path / "items.safetensors")
        Encoded.load(tmp_path / "items.safetensors")
    (tmp_path / "items.safetensors").write_bytes(b"nothing")
    with same_world(), pytest.raises(ValueError, match="items.safetensors"):
        Encoded.load(tmp_path / "items.safetensors")


LEAVES_A_MESS = """
    import logging, os, signal, sys, warnings
    import torch
    from clipseq import hookimpl

    torch.manual_seed(5)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.set_default_dtype(torch.float64)
    os.environ["FOO"] = "1"
    os.chdir("/")
    logging.basicConfig(level=logging.DEBUG)
    logging.root.addHandler(logging.NullHandler())
    logging.root.setLevel(5)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = print
    warnings.simplefilter("ignore")

    @hookimpl
    def clipseq_similarities():
        {end}
        return {{}}
"""


@pytest.mark.parametrize("end", ["pass", "1 / 0", "raise SystemExit", "raise KeyboardInterrupt"])
def test_loading_plugins(end, tmp_path, fresh_registry, monkeypatch):
    info = tmp_path / "clipseq_mess-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: clipseq-mess\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[clipseq]\nmess = clipseq_mess\n")
    (tmp_path / "clipseq_mess.py").write_text(textwrap.dedent(LEAVES_A_MESS.format(end=end)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clipseq_mess", raising=False)
    if end == "pass":
        with same_world():
            clipseq.available_similarities()
    elif "Keyboard" in end:
        with same_world(), pytest.raises(KeyboardInterrupt):
            clipseq.available_similarities()
    else:
        with pytest.warns(clipseq.PluginWarning, match="mess"), same_world():
            clipseq.available_similarities()


class Mean(Similarity):
    """A right similarity that draws random numbers when it is created."""

    def __init__(self, *, embed_dim=None):
        super().__init__(embed_dim=embed_dim)
        torch.randn(3)

    def score(self, x, y):
        return clipseq.unit(x.values.sum(1)) @ clipseq.unit(y.values.sum(1)).T

    def align(self, x, y):
        weights = x.mask[:, :, None] & y.mask[:, None]
        return weights.to(x.values.dtype)


class Seeding(Mean):
    """A wrong similarity that seeds torch's generator."""

    def score(self, x, y):
        torch.manual_seed(0)
        return super().score(x, y).detach()


class Interrupted(Mean):
    """A similarity that is interrupted."""

    def score(self, x, y):
        raise KeyboardInterrupt


KIT = ["forward_and_backward", "deterministic", "ragged_batches", "training_steps", "two_processes"]


@pytest.mark.parametrize("name", KIT)
def test_the_conformance_kit(name):
    with same_world():
        CHECKS[name].run(Mean, max_examples=2)


def test_the_conformance_kit_with_wrong_similarities():
    skipped = {name: "slow" for name in CHECKS if name not in KIT}
    with same_world(), pytest.raises(AssertionError):
        check_similarity(Seeding, max_examples=2, skip=skipped)
    with same_world(), pytest.raises(KeyboardInterrupt):
        check_similarity(Interrupted, max_examples=2)


def test_the_command_line_as_a_function(finished, tmp_path, monkeypatch, capsys):
    for arguments in (
        ["similarities", "--json"],
        ["bench", "global", "--batch", "2", "--threads", "2"],
        ["evaluate", finished.run],
        ["encode", finished.run, finished.data, "--out", tmp_path / "items"],
        ["explain", finished.run, finished.data, "--clip", "train-00000", "--out", "one.png"],
        ["simulate", "--out", tmp_path / "clips", "--clips", "2"],
        ["evaluate", "nothing"],
        ["nonsense"],
    ):
        monkeypatch.setattr(sys, "argv", ["clipseq", *map(str, arguments)])
        with same_world(), pytest.raises(SystemExit):
            entry.main()


def test_similarities_and_losses():
    x, y = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    similarity = clipseq.get_similarity("combined", embed_dim=8)
    similarity.parts["local"].eval()
    with same_world(similarity):
        similarity.explain(x, y)
        clipseq.SequenceLoss(similarity)(x.requires_grad_(), y).backward()
    with same_world(similarity), pytest.raises(TypeError):
        similarity(x, y.long())
