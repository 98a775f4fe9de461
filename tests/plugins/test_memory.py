"""What a similarity adds to the process, forward and backward: bounded, whatever the batch."""

import json
import subprocess
import sys

import pytest

from clipseq.bench import added_bytes

# One process that imports, and a child of it for each size: freed memory is used again unseen.
MEASURE = """
import json, os, sys, torch, clipseq
from clipseq.bench import added_bytes
torch.set_num_threads(1)
similarity = clipseq.get_similarity(sys.argv[1], **json.loads(sys.argv[3]))

def added(batch, steps, others, features):
    x = torch.randn(batch, steps, features, requires_grad=True)
    y = torch.randn(batch, others, features, requires_grad=True)
    # The gradients of the inputs are the caller's, as the inputs are.
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    return added_bytes(lambda: similarity(x, y).square().sum().backward())

added(2, 8, 4, 16)  # what is loaded at the first call is not the similarity's
for sizes in json.loads(sys.argv[2]):
    sys.stdout.flush()
    if os.fork() == 0:
        print(added(*sizes), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""

NAMES = ["global", "local", "attention", "temporal", "combined"]

pytestmark = pytest.mark.skipif(
    added_bytes(lambda: None) is None, reason="the peak of a process's memory is not known here"
)


def added(name: str, *sizes: tuple[int, int, int, int], **options: object) -> list[int]:
    """Bytes for each (B = C, T, L, D)."""
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, name, json.dumps(sizes), json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line) for line in measured.stdout.split()]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_64_adds_at_most_256_mib(name):
    assert added(name, (64, 128, 32, 256))[0] <= 256 * 2**20


# One head: what is asked does not depend on it, and the time does.
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
    batches, features = (128, 256, 512), 8
    sizes = [(batch, 62, 20, features) for batch in batches]
    inputs = [4 * batch * (62 + 20) * features for batch in batches]
    small, middle, large = (
        total - 8 * own for total, own in zip(added(name, *sizes, **options), inputs, strict=True)
    )
    # 48 bytes a pair: scores, their gradients, counts in float64; a pair has 1240 cells.
    # And 8 MiB for tiles, which few sequences do not fill.
    pair = 48
    assert middle - small <= pair * (256**2 - 128**2) + 2**23
    assert large - small <= pair * (512**2 - 128**2) + 2**23
