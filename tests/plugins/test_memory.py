"""The memory that a similarity adds to the process is bounded, whatever the batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

import clipseq
from clipseq.cli.bench import added_bytes
from clipseq.testing.checks.memory import peak_bytes

# One process imports, and forks a child for each size: memory that is freed may be used again
# without being seen.
MEASURE = """
import json, os, sys, torch, clipseq
from clipseq.cli.bench import added_bytes
torch.set_num_threads(1)
similarity = clipseq.get_similarity(sys.argv[1], **json.loads(sys.argv[3]))

def added(batch, steps, others, features):
    x = torch.randn(batch, steps, features, requires_grad=True)
    y = torch.randn(batch, others, features, requires_grad=True)
    # The gradients of the inputs are the caller's, as the inputs are.
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    return added_bytes(lambda: similarity(x, y).square().sum().backward())

added(2, 8, 4, 16)  # loads what the first call loads, which is not the similarity's
for sizes in json.loads(sys.argv[2]):
    sys.stdout.flush()
    if os.fork() == 0:
        print(added(*sizes), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""

pytestmark = pytest.mark.skipif(
    added_bytes(lambda: None) is None,
    reason="this system does not report the peak of a process's memory",
)


# glibc returns large blocks to the system when they are freed, but it adapts what counts as large,
# and what it keeps may lie where nothing fits: 3 MiB in one run, 17 in another. With a fixed
# threshold the measurement is what was allocated and touched.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


def added(
    name: str,
    *sizes: tuple[int, int, int, int],
    options: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
) -> list[int]:
    """Measure the bytes that are added at each (B = C, T, L, D)."""
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, name, json.dumps(sizes), json.dumps(options or {})],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line) for line in measured.stdout.split()]


# What each adds, and less than 40 MiB more: a table of all pairs of steps would be 64 MiB more.
@pytest.mark.parametrize(
    ("name", "mib"),
    [("global", 32), ("local", 80), ("attention", 96), ("temporal", 160), ("combined", 176)],
)
def test_a_batch_of_64_adds_no_table_of_all_pairs(name, mib):
    assert added(name, (64, 128, 32, 256), environment=GIVEN_BACK)[0] <= mib * 2**20


# One head: the number of heads changes the time of this test, and not its bound.
ONE_HEAD = {"num_heads": 1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("global", {}),
        ("local", {}),
        ("attention", ONE_HEAD),
        ("temporal", {}),
        (
            "combined",
            {"parts": {"global": {}, "local": {}, "attention": ONE_HEAD, "temporal": {}}},
        ),
    ],
)
def test_a_larger_batch_adds_but_its_scores_and_what_grows_as_its_inputs(name, options):
    batches, features = (128, 512), 8
    sizes = [(batch, 62, 20, features) for batch in batches]
    inputs = [4 * batch * (62 + 20) * features for batch in batches]
    measured = added(name, *sizes, options=options, environment=GIVEN_BACK)
    small, large = (total - 8 * own for total, own in zip(measured, inputs, strict=True))
    # 32 bytes per pair: scores, their gradients, counts in float64; a pair has 1240 cells. And
    # 2 MiB for tiles, which few sequences do not fill: here, 9 more bytes per pair.
    assert large - small <= 32 * (512**2 - 128**2) + 2**21


@pytest.mark.parametrize(
    ("name", "options"),
    [("local", {"window": 1}), ("local", {}), ("attention", {}), ("temporal", {})],
)
def test_one_long_x_adds_as_little_beside_many_short_y(name, options):
    similarity = clipseq.get_similarity(name, **options)

    def added_beside(count):
        x = torch.randn(1, 500, 2, requires_grad=True)
        y = torch.randn(count, 16, 2, requires_grad=True)
        return peak_bytes(lambda: similarity(x, y).sum().backward()) - 8 * 4 * y.numel()

    # 500 numbers per pair would be 5 MiB more.
    assert added_beside(5000) - added_beside(2500) <= 2**20
