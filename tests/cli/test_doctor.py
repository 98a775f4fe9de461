"""The doctor says what is installed, what is broken and why, and never fails itself."""

import importlib.metadata
import json
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

import clipseq
from clipseq import __main__ as entry
from clipseq.cli.doctor import diagnose
from clipseq.registry import discovery, lookup

BUILT_IN = ["attention", "combined", "global", "local", "temporal"]

PLUGIN = """
    import time
    import torch
    from torch import Tensor
    from clipseq import Similarity, hookimpl
    from clipseq.engine import Operator

    time.sleep(0.05)

    def multiply(x: Tensor, y: Tensor) -> Tensor:
        return x @ y.T

    def differentiate(grad: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return grad @ y, grad.T @ x

    # Not imported: the doctor does not need Triton, nor a module of any particular name.
    multiplied = Operator("doctor_test::multiply", multiply, differentiate, kernels="of_any_name")

    class SlowSimilarity(Similarity):
        operators = (multiplied,)

        def score(self, x, y):
            return x.values.new_zeros(len(x.values), len(y.values))

        def align(self, x, y):
            return x.values.new_zeros(len(x.values), x.mask.shape[1], y.mask.shape[1])

    @hookimpl
    def clipseq_similarities():
        return {"slow": SlowSimilarity, "slower": SlowSimilarity}
"""


@pytest.fixture
def install(tmp_path, monkeypatch, fresh_registry):
    """Install a distribution on the path, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, source, version="1.2", module=None):
        module = module or f"doctor_{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"clipseq_{name}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Name: clipseq-{name}\nVersion: {version}\n")
        info.joinpath("entry_points.txt").write_text(f"[clipseq]\n{name} = {module}\n")

    return install


def test_says_what_is_there(fresh_registry):
    found = diagnose()
    assert found.healthy
    assert found.problem is None
    assert [plugin.name for plugin in found.plugins] == BUILT_IN
    version = importlib.metadata.version("clipseq")
    assert {(p.distribution, p.version) for p in found.plugins} == {("clipseq", version)}
    assert found.versions["torch"] == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert found.devices[0].startswith("cpu: ")
    assert found.extras["testing"]["pytest"] == pytest.__version__
    engines = {engine.similarity: engine for engine in found.engines}
    assert list(engines) == BUILT_IN
    assert engines["temporal"].operators == ("clipseq::temporal_scores",)
    assert engines["global"].operators == ()
    assert (engines["temporal"].pairs, engines["combined"].pairs) == ("its own", "its parts'")
    assert found.triton.keys() == {device.partition(": ")[0] for device in found.devices}
    assert [name for name in BUILT_IN if engines[name].triton is not None] == [
        "attention",
        "local",
        "temporal",
    ]


def test_says_whether_triton_computes_and_why_not(fresh_registry, monkeypatch):
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name="A card", total_memory=2**34),
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(clipseq.engine.kernels, "_without_triton", lambda: None)
    monkeypatch.delenv("CLIPSEQ_TRITON", raising=False)
    found = diagnose()
    assert found.devices[1].startswith("cuda:0: A card, 16 GiB")
    assert found.triton == {"cpu": "not a CUDA device", "cuda:0": None}
    assert {e.similarity: e.triton for e in found.engines}["local"] == ("cuda:0",)
    assert "triton    cpu: not used, not a CUDA device\ntriton    cuda:0: used" in found.as_text()
    monkeypatch.setenv("CLIPSEQ_TRITON", "0")
    found = diagnose()
    assert found.triton["cuda:0"] == "CLIPSEQ_TRITON=0"
    assert {e.similarity: e.triton for e in found.engines}["local"] == ()
    assert "triton    cuda:0: not used, CLIPSEQ_TRITON=0" in found.as_text()


def test_says_how_long_a_plugin_took_and_what_it_offers(install):
    install("slow", PLUGIN)
    found = diagnose()
    (plugin,) = (plugin for plugin in found.plugins if plugin.name == "slow")
    assert (plugin.distribution, plugin.version) == ("clipseq-slow", "1.2")
    assert plugin.similarities == ("slow", "slower")
    assert 0.05 <= plugin.seconds < 5
    (engine,) = (engine for engine in found.engines if engine.similarity == "slow")
    assert engine.pairs == "clipseq's tiles"
    assert engine.operators == ("doctor_test::multiply",)
    assert engine.triton is not None
    assert "clipseq-slow" in found.as_text()


def test_says_what_failed_and_why(install):
    install("broken", "raise RuntimeError('no licence')", version="0.3")
    found = diagnose()
    assert not found.healthy
    assert found.problem is None
    (failed,) = found.failed
    assert (failed.name, failed.distribution, failed.version) == ("broken", "clipseq-broken", "0.3")
    assert failed.cause == "RuntimeError: no licence"
    wanted = "cannot be used: broken of clipseq-broken 0.3: RuntimeError: no licence"
    assert wanted in found.as_text()
    assert "all is well" not in found.as_text()


@pytest.mark.parametrize("failure", ["ValueError('no licence')", "SystemExit('no licence')"])
def test_says_what_cannot_be_made(install, failure):
    raising = f"def __init__(self):\n            torch.rand(1)\n            raise {failure}\n"
    raising += "\n        def score"
    install("slow", PLUGIN.replace("doctor_test", "doctor_raises").replace("def score", raising))
    state = torch.get_rng_state()
    found = diagnose()
    assert not found.healthy
    assert not found.failed
    cause = f"{failure.partition('(')[0]}: no licence"
    assert all(cause in found.unmade[name] for name in ("slow", "slower"))
    assert "global" not in found.unmade
    assert f"cannot be made: slow: {found.unmade['slow']}" in found.as_text()
    assert json.loads(json.dumps(found.to_json()))["unmade"] == found.unmade
    assert torch.equal(torch.get_rng_state(), state)


def test_a_distribution_without_metadata_breaks_no_table(install, tmp_path):
    install("slow", PLUGIN.replace("doctor_test", "doctor_bare"))
    next(tmp_path.glob("*.dist-info/METADATA")).unlink()
    assert "unknown distribution of doctor_slow_" in diagnose().as_text()


def test_says_which_two_offer_the_same_name(install):
    install("local", PLUGIN.replace('"slow"', '"local"'), module="doctor_other_local")
    found = diagnose()
    assert not found.healthy
    assert "the similarity 'local' is offered twice" in found.problem
    assert "clipseq-local 1.2" in found.as_text()
    assert "temporal" in [plugin.name for plugin in found.plugins]
    # Neither of the two is used.
    computed = [engine.similarity for engine in found.engines]
    assert "temporal" in computed
    assert "local" not in computed


def test_a_strict_failure_is_the_problem(install, monkeypatch):
    install("broken", "raise RuntimeError('no licence')")
    monkeypatch.setenv("CLIPSEQ_STRICT", "1")
    found = diagnose()
    assert not found.healthy
    assert "clipseq-broken 1.2 cannot be used: RuntimeError: no licence" in found.problem


def test_says_what_is_left_out(fresh_registry, monkeypatch):
    monkeypatch.setenv("CLIPSEQ_DISABLE", "temporal, attention")
    found = diagnose()
    assert found.healthy
    assert found.disabled == ("attention", "temporal")
    assert "left out by CLIPSEQ_DISABLE: temporal" in found.as_text()


def test_says_which_of_what_is_to_be_left_out_is_no_plugin(fresh_registry, monkeypatch):
    monkeypatch.setenv("CLIPSEQ_DISABLE", "locl, clipseq:temporal, clipseq-foo:global")
    found = diagnose()
    assert found.healthy
    assert found.disabled == ("temporal",)
    assert found.unmatched == ("locl", "clipseq-foo:global")
    wanted = "warning: CLIPSEQ_DISABLE names 'locl', which is not a plugin: did you mean 'local'?"
    assert wanted in found.as_text()
    assert "all is well" not in found.as_text()


def test_says_that_all_is_left_out(fresh_registry, monkeypatch):
    monkeypatch.setenv("CLIPSEQ_DISABLE", ",".join(BUILT_IN))
    found = diagnose()
    assert found.problem == "nothing is registered: CLIPSEQ_DISABLE leaves it out"
    assert not found.unmade


def test_says_that_nothing_is_installed(fresh_registry, monkeypatch):
    monkeypatch.setattr(discovery, "entry_points", lambda group: ([], []))
    found = diagnose()
    assert not found.healthy
    assert "the package clipseq is not installed" in found.problem


def test_is_json(install):
    install("broken", "1 / 0")
    found = json.loads(json.dumps(diagnose().to_json()))
    assert found["healthy"] is False
    assert found["failed"][0]["cause"] == "ZeroDivisionError: division by zero"
    assert found["plugins"][0]["seconds"] > 0


def test_is_a_command(install, monkeypatch, capsys):
    pytest.importorskip("typer")
    for source, status in (("import clipseq", 1), (None, 0)):
        monkeypatch.setattr(lookup, "_registry", lookup.Registry())
        if source is None:
            monkeypatch.setenv("CLIPSEQ_DISABLE", "broken")
        else:
            install("broken", source)
        monkeypatch.setattr(sys, "argv", ["clipseq", "doctor"])
        with pytest.raises(SystemExit) as end:
            entry.main()
        assert end.value.code == status
        assert ("all is well" in capsys.readouterr().out) == (status == 0)
    monkeypatch.setattr(sys, "argv", ["clipseq", "doctor", "--json"])
    with pytest.raises(SystemExit):
        entry.main()
    assert json.loads(capsys.readouterr().out)["healthy"] is True


@pytest.mark.parametrize("declared", ["None", "(1, 'two')"])
def test_survives_a_class_that_declares_anything_as_its_operators(install, declared):
    source = PLUGIN.replace("doctor_test", "doctor_odd").replace("(multiplied,)", declared)
    install("slow", source)
    (engine,) = (engine for engine in diagnose().engines if engine.similarity == "slow")
    assert (engine.operators, engine.triton) == ((), None)
