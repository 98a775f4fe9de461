"""Every built-in similarity compiles whole, forward and backward, and can be exported.

Each in a process of its own: the signature checks of the other tests wrap every function, and are
not for a compiler to trace.
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
# Any numbers of sequences; shorter ones are masked.
b, c = torch.export.Dim("b", min=2), torch.export.Dim("c", min=2)
shapes = ({0: b}, {0: c}, {0: b}, {0: c})
with torch.no_grad():
    inputs = batch(3, 4, 6, 5)
    program = torch.export.export(similarity.eval(), inputs, dynamic_shapes=shapes)
    inputs = batch(5, 2, 6, 5)
    torch.testing.assert_close(program.module()(*inputs), similarity(*inputs))
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
def test_compiles_whole_for_all_shapes(name):
    run(DYNAMIC, name)


def test_combined_and_so_every_part_compiles_for_one_shape_and_is_exported():
    run(STATIC + EXPORT, "combined")


def test_compiles_to_native_code():
    run(INDUCTOR, "local")
