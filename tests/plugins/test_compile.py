"""Every built-in similarity compiles whole, forward and backward, and can be exported.

Each runs in a process of its own: the other tests wrap every function in checks of its signature,
which a compiler cannot trace.
"""

import os
import subprocess
import sys

import pytest

NAMES = ["global", "local", "attention", "temporal", "combined"]

COMMON = """
import sys, torch, clipseq
torch.set_num_threads(1)
torch.manual_seed(0)
similarity = clipseq.get_similarity(sys.argv[1])

def batch(b, c, t, length):
    x, y = torch.randn(b, t, 8), torch.randn(c, length, 8)
    x_mask = torch.arange(t) < torch.randint(1, t + 1, (b, 1))
    y_mask = torch.arange(length) < torch.randint(1, length + 1, (c, 1))
    return x.requires_grad_(), y.requires_grad_(), x_mask, y_mask

def run(function, inputs):
    scores = function(*inputs)
    weights = torch.linspace(-1, 1, scores.numel()).view_as(scores)
    wanted = [*inputs[:2], *similarity.parameters()]
    return [scores, *torch.autograd.grad((scores * weights).sum(), wanted)]

def check(compiled, inputs):
    torch.testing.assert_close(
        run(compiled, inputs), run(similarity, inputs), atol=1e-5, rtol=1e-4
    )
"""

STATIC = """
check(
    torch.compile(similarity, fullgraph=True, dynamic=False, backend="aot_eager"),
    batch(3, 4, 6, 5),
)
"""

DYNAMIC = """
compiled = torch.compile(similarity, fullgraph=True, dynamic=True, backend="aot_eager")
for shape in ((3, 4, 6, 5), (4, 7, 20, 17)):
    check(compiled, batch(*shape))
"""

INDUCTOR = """
check(torch.compile(similarity, fullgraph=True), batch(3, 4, 6, 5))
"""

EXPORT = """
from torch.export import Dim, export
# Any number of sequences and of steps, but enough steps for local to have two windows.
x, y = ({0: Dim(n), 1: Dim(steps, min=17)} for n, steps in (("b", "t"), ("c", "l")))
similarity.eval()
with torch.no_grad():
    program = export(similarity, batch(3, 4, 20, 18), dynamic_shapes=(x, y, x, y)).module()
    for shape in ((5, 2, 70, 17), (2, 6, 17, 41)):
        inputs = batch(*shape)
        torch.testing.assert_close(program(*inputs), similarity(*inputs))
"""


def run(script: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + script, name],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", NAMES)
def test_compiles_whole_and_is_exported_for_one_shape_and_for_all(name):
    run(STATIC + DYNAMIC + EXPORT, name)


def test_compiles_to_native_code():
    run(INDUCTOR, "local")
