"""What the kernels' launchers allocate at a large size, counted without a device to hold it.

On meta tensors, which have no data: so nothing is read back either, and the device never waits.
"""

import os
import subprocess
import sys

import pytest

COUNT = """
import sys, weakref
from importlib import import_module
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

launched = set()
JITFunction.run = lambda self, *_, **__: launched.add(self.fn.__name__)


class Counting(TorchDispatchMode):
    live, most, seen = 0, 0, weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in self.seen:
                    self.seen[storage] = True
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.forget, storage.nbytes())
        self.most = max(self.most, self.live)
        return result

    def forget(self, size):
        self.live -= size


similarity, batch = sys.argv[1], int(sys.argv[2])
kernels = import_module(f"clipseq_{similarity}.triton_kernels")
with torch.device("meta"), Counting() as counting:
    x, y = torch.empty(batch, 248, 256), torch.empty(batch, 77, 256)
    if similarity == "attention":
        x, y = (side.unflatten(2, (8, 32)).transpose(1, 2) for side in (x, y))
    t, length = (torch.empty(batch, dtype=torch.long) for _ in range(2))
    options = {
        "attention": (torch.empty(()),), "local": (None, None), "temporal": (0.1, 0.2)
    }[similarity]
    scores = kernels.forward(x, y, t, length, *options)
    kept = (scores,) if similarity == "temporal" else ()
    kernels.backward(torch.empty_like(scores), *kept, x, y, t, length, *options)
    assert counting.live < counting.most, "nothing was ever freed"
assert launched & {"_gradient", "_to_keys"}
print(counting.most)
"""


def allocated(similarity, batch):
    pytest.importorskip("triton", reason="the kernels cannot be imported without triton")
    done = subprocess.run(
        [sys.executable, "-c", COUNT, similarity, str(batch)],
        capture_output=True,
        text=True,
        timeout=300,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


@pytest.mark.parametrize("similarity", ["attention", "local", "temporal"])
def test_there_is_one_workspace(similarity):
    # 512 MiB at most, beside inputs of 41 MiB, their halves and their gradients.
    assert allocated(similarity, 128) <= 2**29 + 2**27


@pytest.mark.parametrize("similarity", ["attention", "local", "temporal"])
def test_a_batch_of_1024_takes_less_than_2_gib(similarity):
    # The inputs are 0.32 GiB, their unit steps, that the caller of the operators holds, as much
    # again; all cells would take 73 GiB.
    assert allocated(similarity, 1024) <= 2 * 2**30
