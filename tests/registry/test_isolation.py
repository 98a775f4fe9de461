"""A plugin, or a distribution that is broken, affects nothing beyond itself."""

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch

import clipseq
from clipseq.engine.process_state import process_state, same
from clipseq.losses import PairLoss
from clipseq.registry import lookup

WORKING = """
    from clipseq import Similarity, hookimpl, unit

    class Foo(Similarity):
        def score(self, x, y):
            return unit(x.values.sum(1)) @ unit(y.values.sum(1)).T

        def align(self, x, y):
            return x.values.new_ones(len(x.values), x.values.shape[1], y.values.shape[1])

    @hookimpl
    def clipseq_similarities():
        return {"foo": Foo}
"""
BUILT_IN = {"attention", "combined", "global", "local", "temporal"}


def quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return set(clipseq.available_similarities())


@pytest.fixture
def leftover(tmp_path, fresh_registry, monkeypatch):
    """Clipseq's own metadata once more, as an interrupted upgrade by pip leaves it."""
    info = Path(str(metadata.distribution("clipseq")._path))
    shutil.copytree(info, tmp_path / f"~{info.name[1:]}")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "environment", [{}, {"CLIPSEQ_STRICT": "1"}, {"CLIPSEQ_DISABLE": "clipseq:global"}]
)
def test_a_leftover_of_pip_offers_nothing_twice(leftover, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert quietly() == BUILT_IN
    monkeypatch.setattr(lookup, "_registry", lookup.Registry())
    monkeypatch.setenv("CLIPSEQ_DISABLE", "global")
    assert quietly() == BUILT_IN - {"global"}


def test_a_plugin_of_a_whole_distribution_is_disabled_by_its_full_name(fresh_registry, monkeypatch):
    monkeypatch.setenv("CLIPSEQ_DISABLE", "clipseq:global")
    assert quietly() == BUILT_IN - {"global"}


def test_the_same_module_of_two_distributions_counts_once(distribution, tmp_path):
    distribution(WORKING)
    info = tmp_path / "clipseq_bar-2.0.dist-info"
    shutil.copytree(tmp_path / "clipseq_foo-1.2.dist-info", info)
    (info / "METADATA").write_text("Name: clipseq-bar\nVersion: 2.0\n")
    assert quietly() == {*BUILT_IN, "foo"}


@pytest.mark.parametrize(
    "content", [b"\xff\xfe[clipseq]\nfoo = foo", b"[clipseq]\nfoo\n", b"[clipseq\nfoo = x"]
)
def test_entry_points_that_cannot_be_read_are_named(content, tmp_path, monkeypatch, fresh_registry):
    info = tmp_path / "broken_thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: broken-thing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert set(clipseq.available_similarities()) == BUILT_IN
    told = [str(w.message) for w in caught if w.category is clipseq.PluginWarning]
    if content.startswith(b"\xff"):  # the others are read as files without a plugin
        assert "the entry points of broken-thing 1.0 cannot be read: UnicodeDecodeError" in told[0]
        assert clipseq.failed_plugins()[0].distribution == "broken-thing"


CHANGES = """
    import os, random, warnings
    import numpy as np
    import torch

    print("loading foo")
    torch.manual_seed(5); np.random.seed(5); random.seed(5)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("high")
    os.environ["FOO"] = "1"
    os.environ.pop("PATH", None)
    warnings.simplefilter("ignore")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_plugin_leaves_the_process_as_it_was(fails, distribution, capsys, unchecked_signatures):
    # The checks of signatures draw from Python's random numbers.
    distribution(
        textwrap.dedent(CHANGES + ("    1 / 0" if fails else "")) + textwrap.dedent(WORKING)
    )
    torch.manual_seed(3)
    before = process_state()
    if fails:
        with pytest.warns(clipseq.PluginWarning, match="ZeroDivisionError"):
            clipseq.available_similarities()
    else:
        assert "foo" in clipseq.available_similarities()
    after = process_state()
    assert [name for name in before if not same(before[name], after[name])] == []
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "loading foo" in printed.err


@pytest.mark.slow
def test_json_is_alone_on_standard_output(distribution, tmp_path):
    distribution("print('hello from foo')\n" + textwrap.dedent(WORKING))
    done = subprocess.run(
        [sys.executable, "-c", "from clipseq.cli.app import run; run()", "similarities", "--json"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("{")
    assert "hello from foo" in done.stderr


class Leaves(clipseq.Similarity):
    def __init__(self, *, embed_dim=None):
        sys.exit(2)

    def score(self, x, y): ...

    def align(self, x, y): ...


def test_an_init_that_exits_is_an_error_that_names_it(fresh_registry):
    clipseq.register_similarity("leaves", Leaves)
    with pytest.raises(clipseq.PluginError, match=r"Leaves of this process: .* SystemExit: 2"):
        clipseq.get_similarity("leaves")
    with pytest.raises(clipseq.PluginError, match="the part 'leaves' of this process"):
        clipseq.get_similarity("combined")

    class Gone(PairLoss):
        def __init__(self, *, init_scale=1.0):
            raise SystemExit

        def loss(self, scores, positives):
            return scores.sum()

    clipseq.register_loss("gone", Gone)
    with pytest.raises(clipseq.PluginError, match="Gone of this process"):
        clipseq.get_loss("gone")


def scored(change):
    class Changed(type(clipseq.get_similarity("global"))):
        def score(self, x, y):
            return change(super().score(x, y))

    return Changed()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_scores_of_another_dtype_are_named(dtype, unchecked_signatures):
    x = torch.randn(2, 3, 4)
    with pytest.raises(TypeError, match=r"Changed.score must return scores in float32.*got torch"):
        scored(lambda scores: scores.to(dtype))(x, x)


def test_scores_without_gradient_are_no_loss():
    x = torch.randn(2, 3, 4, requires_grad=True)
    detached = scored(lambda scores: scores.detach())
    with pytest.raises(TypeError, match="the scores of Changed must have a gradient"):
        clipseq.SequenceLoss(detached)(x, x)
    with torch.no_grad():
        clipseq.SequenceLoss(detached)(x, x)
    clipseq.SequenceLoss(detached)(x.detach(), x.detach())
