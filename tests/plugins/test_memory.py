"""What a similarity adds to the process, forward and backward, at a real size."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, torch, clipseq
torch.set_num_threads(1)
torch.manual_seed(0)
similarity = clipseq.get_similarity(sys.argv[1])

def step(batch, steps, others, features):
    x = torch.randn(batch, steps, features, requires_grad=True)
    y = torch.randn(batch, others, features, requires_grad=True)
    # The gradients of the inputs are the caller's, as the inputs are.
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    similarity(x, y).square().sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

step(2, 8, 4, 16)  # what is loaded at the first call is not the similarity's
print(step(64, 128, 32, 256) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("name", ["global", "local", "attention", "temporal", "combined"])
def test_a_batch_of_64_adds_at_most_256_mib(name):
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, name], capture_output=True, text=True, check=True
    )
    assert float(measured.stdout) <= 256
