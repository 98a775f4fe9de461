"""The kernels compile for a GPU that is not there, and fit it.

What the launchers launch is compiled down to machine code, and never run: types, shared memory
and registers, which the interpreter does not know.
"""

import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json, os, re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from clipseq_attention import triton_kernels as attention
from clipseq_local import triton_kernels as local
from clipseq_temporal import triton_kernels as temporal


class Absent:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", int(sys.argv[1]), 32))


tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
found, features_of_a_head = [], None


def resources(kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [os.path.join(tools, "cuobjdump"), "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout
    registers, stack = re.search(r"REG:(\\d+) STACK:(\\d+)", usage).groups()
    return int(registers), int(stack)


run = JITFunction.run

def compile_only(self, *arguments, grid, warmup, **options):
    kernel = run(self, *arguments, grid=grid, warmup=True, **options)
    if kernel not in [known for known, _ in found]:
        registers, stack = resources(kernel)
        found.append((kernel, {
            "name": f"{self.fn.__module__}.{self.fn.__name__}",
            "features of a head": features_of_a_head,
            "shared": kernel.metadata.shared,
            "threads": 32 * kernel.metadata.num_warps,
            "registers": registers,
            "stack": stack,
            "tensor cores": len(re.findall(r"wgmma\\.mma_async|mma\\.sync", kernel.asm["ptx"])),
            "barriers": kernel.asm["ptx"].count("bar.sync"),
        }))
    return kernel


JITFunction.run = compile_only
driver.set_active(Absent())


def compile_all(b, c, steps, others):
    global features_of_a_head
    x, y, grad = torch.zeros(b, steps, 256), torch.zeros(c, others, 256), torch.zeros(b, c)
    t, length = torch.full((b,), steps), torch.full((c,), others)
    where = [torch.zeros(shape, dtype=torch.uint8) for shape in ((b, steps, c), (b, c, others))]
    local.forward(x, y, t, length, None, None)
    local.forward(x, y, t, length, *where)
    local.backward(grad, x, y, t, length, *where)
    for band in (None, 0.2):
        temporal.forward(x, y, t, length, 0.1, band)
        temporal.backward(grad, torch.zeros(b, c), x, y, t, length, 0.1, band)
    for features_of_a_head in (32, 64, 128):
        sides = [side.unflatten(2, (-1, features_of_a_head)).transpose(1, 2) for side in (x, y)]
        attention.forward(*sides, t, length, torch.tensor(80.0))
        attention.backward(grad, *sides, t, length, torch.tensor(80.0))
    features_of_a_head = None


# Steps and features as in the largest benchmark; then a batch that needs no other blocks.
compile_all(2, 3, 248, 77)
count = len(found)
compile_all(16, 32, 240, 80)
print(json.dumps({"kernels": [numbers for _, numbers in found], "first": count}))
"""

LARGEST = {80: 163, 89: 99, 90: 227}
"""KiB of shared memory that a program may have, by compute capability (times ten)."""

SPILLED = {80: 64, 89: 128, 90: 0}
"""Bytes of registers that a thread of a program may have on the stack."""


@pytest.fixture(scope="module", params=sorted(LARGEST))
def compiled(request, tmp_path_factory):
    pytest.importorskip("triton", reason="nothing compiles the kernels without triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(request.param)],
        capture_output=True,
        text=True,
        timeout=600,
        env={key: value for key, value in environment.items() if key != "TRITON_INTERPRET"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, json.loads(done.stdout)


def test_every_kernel_compiles_and_fits(compiled):
    capability, kernels = compiled[0], compiled[1]["kernels"]
    assert {kernel["name"] for kernel in kernels} == {
        "clipseq_attention.triton_kernels._attend",
        "clipseq_attention.triton_kernels._to_queries",
        "clipseq_attention.triton_kernels._to_keys",
        "clipseq_local.triton_kernels._maxima",
        "clipseq_local.triton_kernels._gradient",
        "clipseq_temporal.triton_kernels._rates",
        "clipseq_temporal.triton_kernels._weights",
        "clipseq_temporal.triton_kernels._alignment",
        "clipseq_temporal.triton_kernels._gradient",
    }
    for kernel in kernels:
        assert kernel["shared"] <= 1024 * LARGEST[capability], kernel
        assert kernel["registers"] * kernel["threads"] <= 2**16, kernel
        # Registers that did not suffice go to the stack: none on the newest, a few on the older;
        # and some of the largest heads'.
        few = 64 if kernel["features of a head"] == 128 else SPILLED[capability]
        assert kernel["stack"] <= few, kernel


def test_products_are_left_to_tensor_cores(compiled):
    for kernel in compiled[1]["kernels"]:
        recursion = kernel["name"].endswith(("_weights", "_alignment"))
        assert (kernel["tensor cores"] > 0) != recursion, kernel


def test_the_recursion_of_a_warp_needs_no_barrier_and_leaves_room_for_others(compiled):
    for kernel in compiled[1]["kernels"]:
        if kernel["name"].endswith(("_weights", "_alignment")):
            assert (kernel["threads"], kernel["barriers"], kernel["shared"]) == (32, 0, 0)
            # 65536 registers for 16 warps and more.
            assert 16 * 32 * kernel["registers"] <= 2**16


def test_the_gradient_of_local_is_added_up_where_it_is(compiled):
    # Not moved through shared memory between the two products of a block: that takes 36.
    for kernel in compiled[1]["kernels"]:
        if kernel["name"] == "clipseq_local.triton_kernels._gradient":
            assert kernel["barriers"] <= 6, kernel


def test_batches_of_other_sizes_need_no_other_kernels(compiled):
    kernels, first = compiled[1]["kernels"], compiled[1]["first"]
    assert [kernel["name"] for kernel in kernels[first:]] == []
