"""What is computed by kernels keeps the contract as well."""

import os
import subprocess
import sys

import pytest

CHECK = """
import sys, warnings
import torch
from clipseq.engine.kernels import use_kernels
from clipseq.testing import check_similarity

assert use_kernels(torch.zeros(1))
warnings.simplefilter("ignore")  # of numpy, which interprets
torch.set_num_threads(1)
slow = dict.fromkeys(sys.argv[2].split(","), "interpreted, it takes minutes")
check_similarity(sys.argv[1], skip=slow, max_examples=2)
"""

SLOW = ("bounded_memory", "large_batches", "long_against_short", "two_processes")


@pytest.mark.parametrize("name", ["attention", "local", "temporal"])
def test_kernels_keep_the_contract(name):
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    environment = {"CLIPSEQ_TRITON": "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, name, ",".join(SLOW)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
