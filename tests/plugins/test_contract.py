"""The five built-ins keep every promise of the contract, whatever their options are.

The kit calls a similarity some thousands of times, each time with tiny tensors. Checking every
signature would take two thirds of the time, so the checks run without it, as they do for users, and
`test_signatures` calls every function of each variant once with it.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch

from clipseq import Similarity, get_similarity
from clipseq.testing import CHECKS, Make, parametrize_with_checks
from clipseq.testing.conformance import tiles_of

Variant = tuple[str, dict[str, object]]

DEFAULTS: list[Variant] = [
    ("global", {}),
    ("local", {}),
    ("attention", {}),
    ("temporal", {}),
    ("combined", {}),
]
PARTS = {"global": {"pool": "max"}, "local": {"window": 2}}
OPTIONS: list[Variant] = [
    ("global", {"pool": "max"}),
    ("global", {"pool": "first"}),
    ("global", {"pool": "last"}),
    ("global", {"embed_dim": 3}),
    ("local", {"window": 1}),
    ("local", {"window": 3, "stride": 2}),
    ("local", {"window": 0.4}),
    ("local", {"window": 2, "direction": "x"}),
    ("attention", {"num_heads": 1}),
    ("attention", {"num_heads": 2}),
    ("temporal", {"gamma": 0.5, "band": 0.3}),
    ("combined", {"parts": PARTS}),
]
PROJECTED: list[Variant] = [
    ("local", {"window": 2, "embed_dim": 3}),
    ("attention", {"num_heads": 2, "embed_dim": 4}),
    ("temporal", {"embed_dim": 3}),
    ("combined", {"parts": PARTS, "embed_dim": 3}),
]


def makes(variants: Iterable[Variant]) -> dict[str, Make]:
    """Return label -> a function that creates the variant."""
    return {
        f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})": partial(
            get_similarity, name, **options
        )
        for name, options in variants
    }


def all_but(*names: str) -> dict[str, str]:
    """Return a reason to skip each check except those named."""
    return dict.fromkeys([name for name in CHECKS if name not in names], "not in this selection")


# torch.compile cannot trace the checks of signatures, not even those that are switched off.
ELSEWHERE = {"compile": "test_compiled runs it in a process of its own"}

# The following checks do not depend on options, so only `test_defaults` runs them:
OF_THE_CLASS = dict.fromkeys(
    (
        # the signature of `__init__`, and the methods of the class;
        "options",
        "final_methods",
        # `Similarity.forward` moves real steps to the front, cuts what is padding in every row and
        # zeroes the rest before a plugin sees anything, and `explain` moves the weights back;
        "padding_content",
        "padding_amount",
        "padding_gradient",
        "mask_patterns",
        "alignment_positions",
        # `Similarity.forward` converts the inputs and switches autocast off around a plugin.
        "autocast",
    ),
    "does not depend on options: test_defaults runs it",
)

# `embed_dim` is an option of the base class, which projects steps before a plugin sees them: the
# checks of what a plugin does with its steps run for one similarity with it, global. The others
# need to pass it on, to keep it in their state, and to pass gradients through it.
OF_THE_PROJECTION = (
    "forward_and_backward",
    "options",
    "state_dict",
    "shape_and_dtype",
    "ragged_batches",
    "finite_differences",
    "alignment_weights",
    "two_processes",
)


@pytest.mark.usefixtures("unchecked_signatures")
@parametrize_with_checks(makes(DEFAULTS), skip=ELSEWHERE, max_examples=10)
def test_defaults(check: Callable[[], None]) -> None:
    check()


# Few examples for each of many variants; the defaults get more.
@pytest.mark.usefixtures("unchecked_signatures")
@parametrize_with_checks(makes(OPTIONS), skip=ELSEWHERE | OF_THE_CLASS, max_examples=4)
def test_options(check: Callable[[], None]) -> None:
    check()


@pytest.mark.usefixtures("unchecked_signatures")
@parametrize_with_checks(makes(PROJECTED), skip=all_but(*OF_THE_PROJECTION), max_examples=4)
def test_projections(check: Callable[[], None]) -> None:
    check()


ALL = makes(DEFAULTS + OPTIONS + PROJECTED)


# Both passes, every dtype, padding, an empty sequence, single tiles, pairs and alignments together
# call every function of a built-in.
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_signatures(make: Callable[[], Similarity]) -> None:
    similarity = make()
    features = similarity.embed_dim or 4
    x_mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    y_mask = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1]]).bool()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, y = (
            torch.randn(3, steps, features, dtype=dtype, requires_grad=True) for steps in (4, 3)
        )
        for elements in (similarity.tile_elements, 1):
            with tiles_of(similarity, elements):
                scores = similarity(x, y[:2], x_mask, y_mask[:2])
                pairs = similarity.pairs(x, y, x_mask, y_mask)
                (scores.sum() + pairs.sum()).backward()
                with torch.no_grad():
                    similarity(x[:1], y)
                    similarity.pairs(x, y)
        similarity.explain(x, y, x_mask, y_mask)


# combined compiles all other defaults, and test_compile compiles each for any shape.
COMPILED = [*OPTIONS, ("combined", {})]


def test_compiled() -> None:
    program = f"""
from clipseq import Similarity, get_similarity
from clipseq.testing import CHECKS
for name, options in {COMPILED!r}:
    CHECKS["compile"].run(lambda: get_similarity(name, **options))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
