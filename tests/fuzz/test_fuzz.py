"""Wrong arguments of every public callable raise documented errors, with words of clipseq's own.

Each target is called with one argument replaced by a value of any kind, or by a right value with
one thing changed. The examples are the same in every run. CLIPSEQ_FUZZ=20 tries twenty times as
many, in an order of its own.
"""

import importlib
import os
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import junk
import pytest
import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clipseq
from clipseq import __main__ as entry
from clipseq import augment, training
from clipseq.model import CardFacts

TIMES = int(os.environ.get("CLIPSEQ_FUZZ", "1"))
EXAMPLES = 8 * TIMES
LEAST = 800 * TIMES
HERE = Path(clipseq.__file__).parents[1]

pytestmark = pytest.mark.usefixtures("unchecked_signatures", "elsewhere")
tried: Counter[str] = Counter()

WITHOUT_A_MODEL = {
    target.name: target
    for targets_of in (
        targets.option_targets,
        targets.calls_of_similarities,
        targets.losses,
        targets.plain_functions,
        targets.configs,
    )
    for target in targets_of()
}
OF_A_MODEL = (
    "SignalTower.read", "TextTower.read", "simulate", "radhar_dataset", "write_dataset", "train",
    "plan", "write_config", "evaluate_run", "figures.save", "html_report", "metric_table",
    "evaluation_table", "training_step", "CLIP()", "encode_sequences", "CLIP.similarity",
    "encode_batch", "CLIP.encode", "CLIP.encode maps", "CLIP.explain", "Explanation.plot",
    "evaluate", "Encoded", "Encoded.from_sequences", "Encoded[]", "Encoded.batches", "Encoded.to",
    "Encoded.load", "Ragged.from_lengths", "rerank", "Index.create", "Index.open", "Index.add",
    "Index.search", "Index.delete", "CLIP.from_pretrained", "MapDataset", "MapDataset[]",
    "MapDataset.subset", "load_model", "read_config",
)  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Work in a folder of the test's own, since a wrong path may be a good one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def of_a_model(tmp_path_factory) -> dict[str, targets.Target]:
    found = targets.of_a_model(tmp_path_factory.mktemp("fuzz"))
    return {target.name: target for target in found}


@pytest.mark.parametrize("name", WITHOUT_A_MODEL)
def test_wrong_arguments(name):
    search(WITHOUT_A_MODEL[name])


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_wrong_arguments_of_a_model(name, of_a_model):
    search(of_a_model[name])


def search(target: targets.Target) -> None:
    """Call `target` with wrong arguments, and raise AssertionError for an undocumented end."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(target.good)))
        huge = name not in target.small
        right = target.good[name]
        either = st.one_of(junk.anything(huge=huge), junk.changed(right, huge=huge))
        what, value = data.draw(either)
        check(target, name, what, value)

    attempt()


def check(target: targets.Target, name: str, what: str, value: Any) -> None:
    tried[target.name] += 1
    said = f"{target.name} with {name}: {what}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = target.call(**{**target.good, name: value})
    except targets.DOCUMENTED + target.raises as error:
        # The words of Python or torch would not name the argument.
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = Path(last.filename).is_relative_to(HERE) and (last.line or "").startswith("raise")
        if not own and not isinstance(error, target.raises):
            raise AssertionError(f"{said}: {error!r}, from {last}") from error
    except Exception as error:
        raise AssertionError(f"{said} must be an error of clipseq's own, got {error!r}") from error
    else:
        # A result that is as wrong as the values that came in is no fault.
        if what not in ("NaN", "infinite", "huge", "meta"):
            target.holds(result)


def test_every_right_call_succeeds(of_a_model):
    for target in [*WITHOUT_A_MODEL.values(), *of_a_model.values()]:
        if target.rejected is None:
            target.holds(target.call(**target.good))
        else:
            with pytest.raises(target.rejected):
                target.call(**target.good)


ROOMS = (
    "", "augment", "bridges", "data", "encoders", "evaluation", "figures", "model", "registry",
    "retrieval", "testing", "training",
)  # fmt: skip

RECORDS = (
    "Action", "Alignment", "Check", "CompiledKernel", "Confusion", "Curve", "Evaluation",
    "ExplainedPart", "Explanation", "FailedPlugin", "Hits", "Ids", "Inputs", "LoadedPlugin",
    "LossInfo", "Estimate", "Metric", "OrderCounts", "Ranked", "Report", "RunFolder",
    "SignalSteps", "SimilarityInfo", "Summary", "TextSteps",
)  # fmt: skip
"""Results and records, which check nothing themselves; the functions that take them do."""

EXEMPT = {
    "HuggingFaceTextTower": "needs a model directory; its config is a target, and so is TextTower",
    "ModuleTower": "made by CLIP alone, from a module of the user's",
    "Tokenizer": "a protocol",
    "Tower": "a base class",
    "as_text": "prints any object that rich can print",
    "hookimpl": "pluggy's",
    "failed_plugins": "takes no argument",
    "disabled_plugins": "takes no argument",
    "report": "takes no argument",
    "Subject": "made by the kit, from the arguments of check_similarity",
    "KernelCase": "for authors of kernels; needs Triton",
    "check_kernels": "needs Triton",
    "check_similarity_with_kernels": "needs Triton",
    "compile_kernels": "needs Triton",
    "peak_of_kernels": "needs Triton",
    "run_kernels": "needs Triton",
}


def test_every_public_callable_is_tried(of_a_model):
    every = [*WITHOUT_A_MODEL.values(), *of_a_model.values()]
    assert set(of_a_model) == set(OF_A_MODEL)
    covered = {id(target.covers or target.call) for target in every}
    covered |= {id(getattr(target.call, "__func__", None)) for target in every}
    missing = []
    for room in ROOMS:
        module = importlib.import_module(f"clipseq.{room}".rstrip("."))
        for name in module.__all__:
            value = getattr(module, name)
            error = isinstance(value, type) and issubclass(value, BaseException)
            if not callable(value) or error or name in RECORDS or name in EXEMPT:
                continue
            if id(value) not in covered:
                missing.append(f"{module.__name__}.{name}")
    assert not missing, f"add a Target for {missing} to targets.py"


JSON = st.sampled_from(
    [b"", b"{", b"[]", b"null", b"{}", b"NaN", b"1e999", b'"text"', b"[" * 5000, b"\xff\xfe\x00"]
)


@pytest.fixture(scope="session")
def saved(tmp_path_factory, of_a_model) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    targets.tiny_model().save_pretrained(folder / "model")
    (folder / "run.toml").write_text(
        '[data]\npath = "clips"\n[training]\nout = "runs/a"\nmax_steps = 3\n'
        '[model]\nsequence_similarity_type = "local"\n'
    )
    return folder


@st.composite
def spoilt(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw `content` cut, with a byte or a value of its JSON replaced, or other bytes."""
    how = draw(st.sampled_from(["cut", "flip", "other", "value", "key"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "cut":
        return content[:place]
    if how == "flip":
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    values = list(re.finditer(rb"(?<=[:=] )[^,\n\]}]+", content))
    if how in ("value", "key") and values:
        match = draw(st.sampled_from(values))
        if how == "key":
            start = content.rfind(b"\n", 0, match.start()) + 1
            return content[:start] + b"x" + content[start:]
        return content[: match.start()] + draw(JSON) + content[match.end() :]
    return draw(JSON)


def try_files(folder: Path, names: list[str], call: Callable[[], Any]) -> None:
    """Call `call` with each of the files spoilt; it may succeed or raise a ClipseqError."""
    originals = {name: (folder / name).read_bytes() for name in names}

    @settings(
        max_examples=60 * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names))
        tried["files"] += 1
        (folder / name).write_bytes(data.draw(spoilt(originals[name])))
        try:
            call()
        except clipseq.ClipseqError:
            pass
        finally:
            (folder / name).write_bytes(originals[name])

    attempt()


def test_spoilt_models(saved):
    folder = saved / "model"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not name.endswith(".md")]

    def load() -> None:
        targets.finite([*clipseq.CLIP.from_pretrained(folder).parameters()])

    try_files(folder, names, load)


def test_spoilt_configurations(saved):
    try_files(saved, ["run.toml"], lambda: training.read_config(saved / "run.toml"))


def test_spoilt_encodings(saved, of_a_model):
    of_a_model["Encoded.from_sequences"].call(**of_a_model["Encoded.from_sequences"].good).save(
        saved / "items.safetensors"
    )
    try_files(
        saved,
        ["items.safetensors"],
        lambda: repr([*clipseq.Encoded.load(saved / "items.safetensors").ids]),
    )


KEYS = [
    f"{table}.{field.name}"
    for table, cls in (
        ("training", training.TrainingConfig),
        ("training.augment", augment.AugmentConfig),
        ("data", training.DataConfig),
        ("model", clipseq.ModelConfig),
        ("card", CardFacts),
    )
    for field in attrs.fields(cls)
]
VALUES = [
    "", "0", "-1", "1e999", "nan", "inf", "-inf", "2e400", "4294967296", "9" * 40, "true", "null",
    "[]", "[[1], 2]", "{}", "{a = 1}", '"', "'x'", "\\", "C:\\users", "\ud800", "\0", "2024-01-01",
    "é", "x" * 3000, "=", "a=b", "1_000", "0x10", "--help", "~", "../..", "[" * 3000,
]  # fmt: skip


@settings(max_examples=150 * TIMES, derandomize=TIMES == 1, database=None, deadline=None)
@given(key=st.sampled_from([*KEYS, "", ".", "training", "a.b.c"]), value=st.sampled_from(VALUES))
def test_overrides(saved, key, value):
    tried["overrides"] += 1
    try:
        config = training.read_config(saved / "run.toml", [f"{key}={value}"])
    except clipseq.ClipseqError:
        return
    targets.comes_back(training.RunConfig)(config)


COMMANDS = (
    ["similarities", "--json"],
    ["bench", "local", "--batch", "2", "--steps", "3", "--device", "cpu", "--dtype", "float32"],
    ["init", "audio", "new.toml"],
    ["train", "run.toml", "--set", "training.max_steps=3", "--dry-run"],
    ["train", "--resume", "run"],
    ["evaluate", "model", "clips", "--split", "test", "--checkpoint", "best"],
    ["encode", "model", "clips", "--out", "items"],
    ["index", "model", "clips", "--out", "items"],
    ["search", "items", "walks", "-k", "3"],
    ["explain", "model", "clips", "--clip", "a", "--out", "a.png"],
    ["simulate", "--out", "clips", "--clips", "-1"],
    ["new-plugin", "Best Match", "--directory", "none"],
)
WORDS = [
    "", "-1", "0", "nan", "1e999", "nonsense", "--nonsense", "a/b", ".", "..",
    "x" * 300, "é", "-", "--", "a=b", "'", "cuda:99", "meta", "model", "run.toml", "local",
]  # fmt: skip


@settings(
    max_examples=100 * TIMES,
    derandomize=TIMES == 1,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_the_command_line(saved, monkeypatch, capsys, data):
    command = list(data.draw(st.sampled_from(COMMANDS)))
    place = data.draw(st.integers(1, len(command)))
    word = data.draw(st.sampled_from(WORDS))
    command[place : place + data.draw(st.integers(0, 1))] = [word]
    tried["commands"] += 1
    with monkeypatch.context() as patch:
        patch.chdir(saved)
        patch.setattr(sys, "argv", ["clipseq", *command])
        with pytest.raises(SystemExit) as end:
            entry.main()
    assert end.value.code in (None, 0, 1, 2), command
    assert "Traceback" not in capsys.readouterr().err


def test_enough_was_tried(request):
    """Count the examples of a run of this whole module."""
    if request.config.option.keyword or len(tried) < len(WITHOUT_A_MODEL):
        pytest.skip("only a part of this module was run")
    assert tried.total() >= LEAST
