"""The five built-ins keep every promise of the contract, whatever their options are."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

from clipseq import get_similarity
from clipseq.testing import parametrize_with_checks

OPTIONS = {
    "global": [{}, {"pool": "max"}, {"pool": "first"}, {"pool": "last"}, {"embed_dim": 3}],
    "local": [{}, {"window": 1}, {"window": 3, "stride": 2}, {"window": 2, "embed_dim": 3}],
    "attention": [{}, {"num_heads": 1}, {"num_heads": 2, "embed_dim": 4}],
    "temporal": [{}, {"gamma": 0.5, "band": 0.3}, {"embed_dim": 3}],
    "combined": [
        {},
        {"parts": {"global": {"pool": "max"}, "local": {"window": 2}}, "embed_dim": 3},
    ],
}


def _label(name: str, options: dict[str, object]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"


MAKES = {
    _label(name, options): partial(get_similarity, name, **options)
    for name, several in OPTIONS.items()
    for options in several
}


# torch.compile cannot trace the checks of signatures that the tests run with.
ELSEWHERE = {"compile": "test_compiled runs it in a process of its own"}


@parametrize_with_checks(
    {name: make for name, make in MAKES.items() if name.endswith("()")}, skip=ELSEWHERE
)
def test_defaults(check: Callable[[], None]) -> None:
    check()


# Options with few examples: `max_examples` buys depth with time.
@parametrize_with_checks(
    {name: make for name, make in MAKES.items() if not name.endswith("()")},
    skip=ELSEWHERE,
    max_examples=6,
)
def test_options(check: Callable[[], None]) -> None:
    check()


def test_compiled() -> None:
    program = f"""
from functools import partial
from clipseq import get_similarity
from clipseq.testing import CHECKS
for name, several in {OPTIONS!r}.items():
    for options in several:
        CHECKS["compile"].run(partial(get_similarity, name, **options))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
