"""No check is vacuous: each wrong similarity is caught, and by the check that should catch it.

Signatures are not checked here, just as for authors, so only the kit can catch a mistake.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase

from clipseq.testing import CHECKS, ConformanceError, check_similarity, conformance

# The test modules are not a package; the module has a name so that pickle finds its classes.
_spec = importlib.util.spec_from_file_location(
    "wrong_similarities", Path(__file__).with_name("wrong_similarities.py")
)
wrong_similarities = importlib.util.module_from_spec(_spec)
sys.modules["wrong_similarities"] = wrong_similarities
_spec.loader.exec_module(wrong_similarities)

WRONG = wrong_similarities.WRONG

pytestmark = pytest.mark.usefixtures("unchecked_signatures")


def _label(make: object) -> str:
    return make.__qualname__ if "<lambda>" not in make.__qualname__ else type(make()).__qualname__


HERE = [(make, check) for make, check in WRONG if check != "compile"]


@pytest.mark.parametrize(
    ("make", "check"), HERE, ids=[f"{_label(make)}-{check}" for make, check in HERE]
)
def test_is_caught(make, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Any example will do here; test_conformance shows that messages have the smallest.
    monkeypatch.setattr(conformance, "PHASES", (Phase.generate,))
    with pytest.raises(ConformanceError) as caught:
        CHECKS[check].run(make)
    message = str(caught.value)
    assert message.startswith(f"{_label(make)} breaks the promise '{check}': ")
    assert CHECKS[check].look_at in message


@pytest.mark.parametrize("clean", wrong_similarities.CLEAN, ids=lambda cls: cls.__name__)
def test_the_clean_reference_passes(clean) -> None:
    check_similarity(clean, max_examples=4, skip=_slow_in_python(clean))


def _slow_in_python(clean) -> dict[str, str]:
    skip = {"compile": "test_compile runs it in a process of its own"}
    if clean is wrong_similarities.Dtw:
        slow = ("large_batches", "bounded_memory", "long_against_short", "float32")
        skip |= dict.fromkeys(slow, "a recursion in Python over single cells")
    return skip


def test_compile() -> None:
    # In a process without checks of signatures, which torch.compile cannot trace.
    program = """
import wrong_similarities as w
from clipseq.testing import CHECKS, ConformanceError
for clean in (w.Pooled, w.MaxSim, w.SoftMatch):
    CHECKS["compile"].run(clean)
for make, check in w.WRONG:
    if check == "compile":
        try:
            CHECKS[check].run(make)
        except ConformanceError as error:
            print(make.__qualname__, str(error).splitlines()[1])
        else:
            raise SystemExit(f"{make.__qualname__} is not caught")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "NegativePaddingEverywhere   found: score[" in done.stdout
    assert "ReadsALength   found: it raised" in done.stdout


def test_every_check_catches_something() -> None:
    assert len(WRONG) >= 30
    assert {check for _, check in WRONG} == set(CHECKS)
