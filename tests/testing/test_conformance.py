"""The kit from an author's view: the call, the decorator, the command, and the messages."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipseq import Sequences, Similarity, unit
from clipseq.distributed.carriers import AllGather, Ring
from clipseq.testing import (
    CHECKS,
    Check,
    ConformanceError,
    check_similarity,
    parametrize_with_checks,
    sequence_pairs,
    sequences,
)
from clipseq.testing.checks.memory import peak_bytes
from clipseq.testing.kernels import CHECKS_IN_FLOAT32

# Authors do not check signatures either, and without these checks a search takes half the time.
pytestmark = pytest.mark.usefixtures("unchecked_signatures")


class Cosine(Similarity):
    """The cosine of summed steps."""

    def score(self, x: Sequences, y: Sequences) -> torch.Tensor:
        return unit(x.values.sum(1)) @ unit(y.values.sum(1)).T

    def align(self, x: Sequences, y: Sequences) -> torch.Tensor:
        return torch.bmm(x.values, y.values.mT).clamp(min=0)


class CountsPadding(Cosine):
    """The mean of cosines over T steps, padding included."""

    def score(self, x: Sequences, y: Sequences) -> torch.Tensor:
        return torch.einsum("btd,cld->bc", x.values, y.values) / (x.mask.shape[1] * y.mask.shape[1])

    def align(self, x: Sequences, y: Sequences) -> torch.Tensor:
        return torch.bmm(x.values, y.values.mT)


class WithoutGradient(Cosine):
    """Scores that are finite, too large, and detached."""

    def score(self, x: Sequences, y: Sequences) -> torch.Tensor:
        return 2 * super().score(x, y).detach()


class CannotBeMade(Cosine):
    def __init__(self, width: int) -> None:
        super().__init__()


EVERYTHING_BUT = dict.fromkeys(CHECKS, "not in this test")


def skip_all_but(*names: str) -> dict[str, str]:
    return {name: reason for name, reason in EVERYTHING_BUT.items() if name not in names}


def test_a_message_names_the_promise_the_example_and_where_to_look() -> None:
    with pytest.raises(ConformanceError) as caught:
        CHECKS["ragged_batches"].run(CountsPadding)
    message = str(caught.value)
    assert message.startswith("CountsPadding breaks the promise 'ragged_batches': a short sequence")
    assert "found: score[" in message
    assert ", as for the pair alone, got " in message
    assert CHECKS["ragged_batches"].look_at in message
    # The smallest example with visible padding is a short sequence in a batch with a longer one.
    example = message[message.index("smallest example") : message.index("look at")]
    assert "x: (2, 2, 4) float64" in example
    assert 1 <= example.count("padding") <= 2


def test_the_search_is_the_same_in_every_run() -> None:
    messages = set()
    for _ in range(2):
        torch.rand(5)
        with pytest.raises(ConformanceError) as caught:
            CHECKS["ragged_batches"].run(CountsPadding)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    CHECKS["finite_differences"].run(Cosine)
    CHECKS["range"].run(Cosine)
    assert torch.equal(torch.rand(2), wanted)


def test_all_failures_are_reported_at_once() -> None:
    few = skip_all_but("ragged_batches", "alignment_weights", "shape_and_dtype")
    with pytest.raises(ConformanceError) as caught:
        check_similarity(CountsPadding, skip=few)
    message = str(caught.value)
    assert message.startswith(f"CountsPadding breaks 2 of the {len(CHECKS)} promises")
    assert "'ragged_batches'" in message
    assert "'alignment_weights'" in message
    assert "'shape_and_dtype'" not in message


class MultipliesPadding(Cosine):
    """The mean of the best cosine, in which padded steps count as 0 instead of not at all."""

    def prepare_x(self, x: Sequences) -> Sequences:
        return Sequences(unit(x.values), x.mask)

    def score(self, x: Sequences, y: Sequences) -> torch.Tensor:
        best = torch.einsum("btd,cld->bctl", x.values, y.values).amax(3)
        return best.sum(2) / x.mask.sum(1)[:, None]


class Squeezes(Cosine):
    """The cosine of summed steps, squeezed by accident."""

    def score(self, x: Sequences, y: Sequences) -> torch.Tensor:
        cosines = super().score(x, y)
        return cosines if len(y.values) > 1 else cosines.squeeze().expand(len(x.values), 1) * 0.5


def test_a_hint_names_padding_first_where_the_example_needs_it() -> None:
    for make, first in ((MultipliesPadding, "padded steps first, since"), (Squeezes, "squeeze()")):
        with pytest.raises(ConformanceError, match="one_row_batches") as caught:
            CHECKS["one_row_batches"].run(make)
        assert f"look at: {first}" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "label", "found"),
    [
        (WithoutGradient, "WithoutGradient", "the scores are detached from both"),
        (lambda: WithoutGradient(), "WithoutGradient", "the scores are detached from both"),
        (CannotBeMade, "CannotBeMade", "creating one raised TypeError: .* argument: 'width'"),
        (lambda: CannotBeMade(), ".*<lambda>", "creating one raised TypeError: "),
    ],
)
def test_a_similarity_that_does_not_run_is_reported_alone(make, label, found) -> None:
    head = rf"^{label} breaks the promise 'forward_and_backward': .*\n  found: .*{found}"
    with pytest.raises(ConformanceError, match=head) as caught:
        check_similarity(make)
    assert str(caught.value).count("breaks") == 1
    assert len(str(caught.value)) < 1000


def test_other_checks_point_to_the_first() -> None:
    CHECKS["final_methods"].run(WithoutGradient)
    with pytest.raises(ConformanceError) as caught:
        CHECKS["range"].run(WithoutGradient)
    message = str(caught.value)
    head, first, found, *example = message.splitlines()
    assert head.startswith("WithoutGradient breaks the promise 'range': ")
    assert first == "  it breaks 'forward_and_backward', too: look there first"
    assert found.startswith("  found: score[0, 0] must be at most 1.0001 in size, got ")
    assert example[0] == "  smallest example:"
    with pytest.raises(ConformanceError, match=r"look there first\n  found: creating one raised"):
        CHECKS["range"].run(CannotBeMade)


@pytest.mark.parametrize(
    "make", [Cosine, "global", lambda: Cosine(embed_dim=3)], ids=["class", "name", "function"]
)
def test_what_may_be_checked(make) -> None:
    check_similarity(make, skip=skip_all_but("shape_and_dtype", "range"))


def test_what_is_made_must_be_a_similarity() -> None:
    with pytest.raises(TypeError, match="must create a clipseq.Similarity, got Linear"):
        CHECKS["range"].run(lambda: torch.nn.Linear(2, 2))


@pytest.mark.parametrize("make", [Cosine(), 3], ids=["similarity", "number"])
def test_what_cannot_be_made_afresh_is_refused(make) -> None:
    for check in (check_similarity, CHECKS["range"].run, parametrize_with_checks):
        with pytest.raises(
            TypeError, match=r"make must be a registered name, a class, or .* got (Cos|3)"
        ):
            check(make)


class KeepsModules(Cosine):
    def __init__(self, kept: Callable[[torch.nn.Module], object]) -> None:
        super().__init__()
        self.__dict__["kept"] = kept(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda head: [head], "'kept' keeps a module in a list; use nn.ModuleList"),
        (lambda head: ({"a": head},), "'kept' keeps a module in a tuple; use nn.ModuleList"),
        (lambda head: {"a": head}, "'kept' keeps a module in a dict; use nn.ModuleDict"),
        (lambda head: head, "'kept' keeps a module that is not registered; assign"),
        (lambda head: partial(head, 1), "'kept' keeps a module that is not registered; assign"),
    ],
)
def test_a_kept_module_is_named_with_what_registers_it(kept, message) -> None:
    with pytest.raises(ConformanceError, match=message):
        CHECKS["registered_tensors"].run(lambda: KeepsModules(kept))


class ListsWhatIsRegistered(Cosine):
    """An LSTM, which lists its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(2, 2)
        self.order = [self.lstm, self.lstm.forward]


class Scripted(Cosine):
    def __init__(self) -> None:
        super().__init__()
        self.scripted = torch.jit.script(torch.nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_module_is_registered_like_others() -> None:
    CHECKS["registered_tensors"].run(Scripted)


def test_what_is_registered_may_be_listed_once_more() -> None:
    CHECKS["registered_tensors"].run(ListsWhatIsRegistered)


class Halved(Cosine):
    """Prepares a tree of two leaves whose gradients are one and the same."""

    def prepare_x(self, x: Sequences) -> dict[str, torch.Tensor]:
        half = 0.5 * unit(x.values.sum(1))
        return {"a": half, "b": half.clone()}

    def score(self, x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["a"] + x["b"]) @ (y["a"] + y["b"]).T


@pytest.mark.parametrize("carrier", [Ring, AllGather])
def test_two_processes_are_seen_to_exchange_in_both_ways(carrier, monkeypatch) -> None:
    CHECKS["two_processes"].run(Halved)
    collect = carrier.collect
    monkeypatch.setattr(carrier, "collect", lambda *a: [2 * part for part in collect(*a)])
    how = {Ring: "ring", AllGather: "all"}[carrier]
    with pytest.raises(ConformanceError, match=rf"the gradient of y \(gather='{how}'\)"):
        CHECKS["two_processes"].run(Cosine)


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ({"rnge": "because"}, "skip must name checks, got 'rnge'.*did you mean 'range'"),
        (
            {"zzz": "because"},
            "skip must name checks, got 'zzz'; checks: forward_and_backward, options, ",
        ),
        ({"range": " "}, r"skip\['range'\] must be a reason, got ' '"),
    ],
)
def test_skip_is_checked(skip: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_similarity(Cosine, skip=skip)
    with pytest.raises(ValueError, match=message):
        parametrize_with_checks(Cosine, skip=skip)


def test_skip_without_reasons_is_refused() -> None:
    for check in (check_similarity, parametrize_with_checks):
        with pytest.raises(TypeError, match=r"skip must be a mapping from names .*'compile'\]"):
            check(Cosine, skip=["compile"])


def test_a_search_tries_something() -> None:
    for check in (check_similarity, CHECKS["range"].run, parametrize_with_checks):
        for number in (0, -3):
            with pytest.raises(ValueError, match=rf"max_examples must be at least 1, got {number}"):
                check(Cosine, max_examples=number)
        with pytest.raises(TypeError, match="max_examples must be an integer, got 2.5"):
            check(Cosine, max_examples=2.5)


def test_embed_dim_gives_the_features() -> None:
    with pytest.raises(
        ValueError, match="features must be the embed_dim of the similarity, 3, got 5"
    ):
        CHECKS["range"].run(lambda: Cosine(embed_dim=3), features=5)
    CHECKS["range"].run(Cosine, features=5)


class Sized(Cosine):
    refusal: type[Exception] = ValueError

    def __init__(self, *, groups: int = 7, embed_dim: int | None = None) -> None:
        if embed_dim is not None and embed_dim % groups:
            raise self.refusal(f"embed_dim={embed_dim} is no multiple of groups={groups}")
        super().__init__(embed_dim=embed_dim)


class SizedByTorch(Sized):
    refusal = AssertionError


def test_an_embed_dim_may_be_refused_and_not_ignored() -> None:
    CHECKS["options"].run(Sized)
    CHECKS["options"].run(SizedByTorch)

    class Ignores(Cosine):
        def __init__(self, *, embed_dim: int | None = None) -> None:
            super().__init__()

    with pytest.raises(
        ConformanceError, match=r"embed_dim must be 48 after __init__\(embed_dim=48\), got None"
    ):
        CHECKS["options"].run(Ignores)


def test_checks_are_named_and_explained() -> None:
    assert len(CHECKS) > 35
    for name, check in CHECKS.items():
        assert isinstance(check, Check)
        assert check.name == name
        assert name.isidentifier()
        assert "\n" not in check.promise
        assert check.look_at
    assert len({check.promise for check in CHECKS.values()}) == len(CHECKS)


@parametrize_with_checks(
    {"plain": Cosine, "projected": lambda: Cosine(embed_dim=2)},
    skip=skip_all_but("shape_and_dtype"),
)
def test_the_decorator_runs_checks(check: Callable[[], None]) -> None:
    check()


def test_the_checks_that_reach_kernels_are_those_that_score_in_float32() -> None:
    dtypes = set()

    class Noted(Cosine):
        def score(self, x: Sequences, y: Sequences) -> torch.Tensor:
            dtypes.add(x.values.dtype)
            return super().score(x, y)

    found = set()
    # The class is local, so it cannot be pickled; a compiler does not trace the note.
    for name in set(CHECKS) - {"pickle", "compile"}:
        dtypes.clear()
        CHECKS[name].run(Noted, max_examples=1)
        if torch.float32 in dtypes:
            found.add(name)
    assert found | {"pickle", "compile"} == set(CHECKS_IN_FLOAT32)


def test_the_decorator_marks_and_names() -> None:
    mark = parametrize_with_checks(CountsPadding, skip={"range": "because"}).mark
    parameters = {parameter.id: parameter for parameter in mark.args[1]}
    assert list(parameters) == [f"CountsPadding-{name}" for name in CHECKS]
    assert parameters["CountsPadding-range"].marks[0].kwargs == {"reason": "because"}
    assert not parameters["CountsPadding-options"].marks
    with pytest.raises(ConformanceError, match="alignment_weights"):
        parameters["CountsPadding-alignment_weights"].values[0]()


@given(sequences(batch=(1, 3), steps=(1, 4), features=(1, 3), empty=True))
def test_sequences_have_zero_padding(drawn: Sequences) -> None:
    assert drawn.values.shape[:2] == drawn.mask.shape
    assert 1 <= len(drawn.values) <= 3
    assert not bool(drawn.values[~drawn.mask].any())


@given(sequences(masks="prefix"))
def test_prefix_masks_have_their_padding_last(drawn: Sequences) -> None:
    steps = torch.arange(drawn.mask.shape[1])
    assert torch.equal(drawn.mask, steps < drawn.lengths[:, None])
    assert bool((drawn.lengths > 0).all())


@given(sequences(kinds=("dense", "basis", "zero", "repeat"), masks="full"), st.integers(0, 99))
def test_tame_steps_never_cancel(drawn: Sequences, seed: int) -> None:
    steps = drawn.values[0]
    generator = torch.Generator().manual_seed(seed)
    chosen = steps[torch.rand(len(steps), generator=generator) > 0.5]
    largest = float(chosen.norm(dim=-1).max()) if len(chosen) else 0.0
    assert float(chosen.sum(0).norm()) >= 0.1 * largest


@pytest.mark.parametrize("wanted", ["same", "opposite", "other", "hole", "empty", "zero"])
def test_pairs_hold_what_they_promise(wanted: str) -> None:
    from hypothesis import find

    def has(pair: tuple[Sequences, Sequences]) -> bool:
        x, y = pair
        alike = x.values.shape == y.values.shape
        return {
            "same": lambda: alike and torch.equal(x.values, y.values),
            "opposite": lambda: alike and torch.equal(x.values, -y.values) and bool(x.values.any()),
            "other": lambda: not alike,
            "hole": lambda: bool((~x.mask[:, :-1] & x.mask[:, 1:]).any()),
            "empty": lambda: bool((~x.mask.any(1)).any()),
            "zero": lambda: bool((x.mask & ~x.values.any(-1)).any()),
        }[wanted]()

    find(sequence_pairs(empty=True), has)


def test_peak_bytes_sees_what_is_freed_again() -> None:
    def work() -> None:
        for _ in range(3):
            torch.zeros(2**18)

    assert peak_bytes(work) == 2**20


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    plugin = ("-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *plugin, "--rootdir", str(folder), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def but(*names: str) -> list[str]:
    return [f"--clipseq-skip={name}=not now" for name in skip_all_but(*names)]


def test_the_command_needs_no_test_file(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other():\n    assert False\n")
    done = run_pytest(tmp_path, "-v", "--clipseq-check", "global", *but("range", "duplicates"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"2 passed, {len(CHECKS) - 2} skipped" in done.stdout
    assert "clipseq[global]::range PASSED" in done.stdout
    assert "test_other" not in done.stdout


def test_the_command_reports_a_broken_promise(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        textwrap.dedent(
            """
            import torch, clipseq

            class Negative(clipseq.Similarity):
                def score(self, x, y):
                    return torch.einsum("btd,cld->bc", x.values, y.values)

                def align(self, x, y):
                    return torch.bmm(x.values, y.values.mT)

            clipseq.register_similarity("negative", Negative)
            """
        )
    )
    done = run_pytest(tmp_path, "--clipseq-check=negative", *but("alignment_weights", "range"))
    assert done.returncode == 1
    assert "negative breaks the promise 'alignment_weights'" in done.stdout
    assert "negative breaks the promise 'range'" in done.stdout
    assert "Traceback" not in done.stdout


BROKEN = """
import torch, clipseq
from clipseq.testing import check_similarity

class Broken(clipseq.Similarity):
    def __init__(self):
        raise RuntimeError("no weights")

    score = align = None

clipseq.register_similarity("broken", Broken)
"""


def test_the_command_reports_what_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(BROKEN)
    done = run_pytest(tmp_path, "--clipseq-check=broken", *but("forward_and_backward", "range"))
    assert done.returncode == 1, done.stderr
    assert "found: creating one raised RuntimeError: no weights" in done.stdout
    assert done.stdout.count("it breaks 'forward_and_backward', too: look there first") >= 1
    assert "Traceback" not in done.stdout


def test_a_failed_test_shows_its_author_the_message_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        BROKEN + "\ndef test_it():\n    check_similarity(Broken)\n"
    )
    done = run_pytest(tmp_path, "test_it.py")
    assert "Broken breaks the promise 'forward_and_backward'" in done.stdout
    assert "test_it.py:7: RuntimeError" in done.stdout
    assert "def run(" not in done.stdout
    assert "def check_similarity(" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clipseq-check=globel"], "no similarity named 'globel': did you mean 'global'?"),
        (
            ["--clipseq-check=global", "--clipseq-skip=rang=x"],
            "--clipseq-skip: skip must name checks, got 'rang': did you mean 'range'?",
        ),
        (
            ["--clipseq-check=global", "--clipseq-skip=range"],
            "skip['range'] must be a reason, got ''",
        ),
        (
            ["--clipseq-check=global", "--clipseq-examples=0"],
            "--clipseq-examples: max_examples must be at least 1, got 0",
        ),
    ],
)
def test_the_command_explains_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_pytest(tmp_path, *arguments)
    assert done.returncode == 4
    assert message in done.stderr
