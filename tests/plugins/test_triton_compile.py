"""The kernels compile for GPUs that this machine does not have, and fit them.

The kernels that the launchers start are compiled down to machine code, but not run. This shows
types, shared memory and registers, which the interpreter does not know.
"""

import pytest
import torch

from clipseq.testing import compile_kernels

SPILLED = {80: 64, 89: 128, 90: 0}
"""Largest stack of a thread in bytes, for registers that do not fit, by compute capability."""

HEADS = (32, 64, 128)
SIZES = ((2, 3, 248, 77), (16, 32, 240, 80))
"""B, C, T and L: steps as in the largest benchmark; then a batch for which the same blocks do."""


def launch(size, features_of_a_head):
    b, c, steps, others = size
    x, y, grad = torch.zeros(b, steps, 256), torch.zeros(c, others, 256), torch.zeros(b, c)
    lengths = torch.full((b,), steps), torch.full((c,), others)
    if features_of_a_head is not None:
        from clipseq_attention import triton_kernels as attention

        x, y = (side.unflatten(2, (-1, features_of_a_head)).transpose(1, 2) for side in (x, y))
        inputs = x, y, *lengths, torch.tensor(80.0)
        attention.backward(grad, attention.forward(*inputs), *inputs)
        return
    from clipseq_local import triton_kernels as local
    from clipseq_temporal import triton_kernels as temporal

    local.forward(x, y, *lengths, False, 1)
    where = [torch.zeros(shape, dtype=torch.uint8) for shape in ((b, steps, c), (b, c, others))]
    local.forward(x, y, *lengths, True, 1)
    local.backward(grad, x, y, *lengths, 1, *where)
    for band in (None, 0.2):
        inputs = x, y, *lengths, 0.1, band
        temporal.backward(grad, temporal.forward(*inputs), *inputs)


@pytest.fixture(scope="module", params=sorted(SPILLED))
def compiled(request):
    pytest.importorskip("triton", reason="nothing compiles the kernels without triton")
    arguments = [(size, features) for size in SIZES for features in (None, *HEADS)]
    found = compile_kernels(launch, arguments, capability=request.param)
    first, again = found[: len(found) // 2], found[len(found) // 2 :]
    return request.param, dict(zip((None, *HEADS), first, strict=True)), again


def kernels_of(compiled):
    return [kernel for kernels in compiled[1].values() for kernel in kernels]


def test_every_kernel_compiles_and_fits(compiled):
    capability, by_head, _ = compiled
    assert {kernel.name for kernel in kernels_of(compiled)} == {
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
    for features_of_a_head, kernels in by_head.items():
        for kernel in kernels:
            assert kernel.fits(capability), kernel
            # Values that do not fit into registers go to the stack: none on the newest GPU, and a
            # few on older ones or with the largest heads.
            few = 64 if features_of_a_head == 128 else SPILLED[capability]
            assert kernel.stack <= few, kernel


def test_products_are_left_to_tensor_cores(compiled):
    for kernel in kernels_of(compiled):
        recursion = kernel.name.endswith(("_weights", "_alignment"))
        assert (kernel.products > 0) != recursion, kernel


def test_the_recursion_of_a_warp_needs_no_barrier_and_leaves_room_for_others(compiled):
    for kernel in kernels_of(compiled):
        if kernel.name.endswith(("_weights", "_alignment")):
            assert (kernel.threads, kernel.barriers, kernel.shared) == (32, 0, 0)
            # 65536 registers for 16 warps and more.
            assert 16 * 32 * kernel.registers <= 2**16


def test_the_gradient_of_local_is_added_up_where_it_is(compiled):
    # It must not move through shared memory between the two products of a block: that takes 36.
    for kernel in kernels_of(compiled):
        if kernel.name == "clipseq_local.triton_kernels._gradient":
            assert kernel.barriers <= 6, kernel


def test_batches_of_other_sizes_need_no_other_kernels(compiled):
    assert [kernel.name for kernels in compiled[2] for kernel in kernels] == []
