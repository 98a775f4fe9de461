"""Every built-in similarity compiles whole, forward and backward, and can be exported.

It runs in a process of its own: the other tests wrap every function in checks of its signature,
which a compiler cannot trace. One process runs all built-ins, and reports those that fail.
test_contract compiles each variant for a single shape.
"""

import json
import os
import subprocess
import sys

import pytest

NAMES = ["global", "local", "attention", "temporal", "combined"]

PROGRAM = """
import json, sys, traceback, torch, clipseq
torch.set_num_threads(1)

def batch(b, c, t, length):
    x, y = torch.randn(b, t, 8), torch.randn(c, length, 8)
    x_mask = torch.arange(t) < torch.randint(1, t + 1, (b, 1))
    y_mask = torch.arange(length) < torch.randint(1, length + 1, (c, 1))
    return x.requires_grad_(), y.requires_grad_(), x_mask, y_mask

def run(function, inputs, similarity):
    scores = function(*inputs)
    weights = torch.linspace(-1, 1, scores.numel()).view_as(scores)
    wanted = [*inputs[:2], *similarity.parameters()]
    return [scores, *torch.autograd.grad((scores * weights).sum(), wanted)]

def check(compiled, inputs, similarity):
    torch.testing.assert_close(
        run(compiled, inputs, similarity), run(similarity, inputs, similarity), atol=1e-5, rtol=1e-4
    )

def compiles_whole(similarity):
    compiled = torch.compile(similarity, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 4, 6, 5), (4, 7, 20, 17)):
        check(compiled, batch(*shape), similarity)

def compiles_to_native_code(similarity):
    check(torch.compile(similarity, fullgraph=True), batch(3, 4, 6, 5), similarity)

def is_exported(similarity):
    from torch.export import Dim, export
    # Any number of sequences and of steps, from an example shorter than a window of local.
    x, y = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for _ in range(2))
    similarity.eval()
    with torch.no_grad():
        program = export(similarity, batch(3, 4, 9, 5), dynamic_shapes=(x, y, x, y)).module()
        for shape in ((5, 2, 70, 17), (2, 6, 17, 41), (4, 3, 7, 30)):
            inputs = batch(*shape)
            torch.testing.assert_close(program(*inputs), similarity(*inputs))

for what, name in json.loads(sys.argv[1]):
    torch.compiler.reset()
    torch.manual_seed(0)
    try:
        globals()[what](clipseq.get_similarity(name))
    except Exception:
        print(json.dumps([what, name, traceback.format_exc()[-3000:]]))
"""

CASES = [
    *((what, name) for name in NAMES for what in ("compiles_whole", "is_exported")),
    ("compiles_to_native_code", "local"),
]


@pytest.fixture(scope="module")
def failures() -> dict[tuple[str, str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {(what, name): trace for what, name, trace in found}


@pytest.mark.parametrize(("what", "name"), CASES)
def test_a_built_in(what, name, failures):
    assert (what, name) not in failures, failures[what, name]
