"""Building blocks of Triton kernels: how they are compiled, and a tile of products.

This module imports Triton. `clipseq.engine` exports its names, but imports it only on first use.
"""

from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import triton
import triton.language as tl


def jit_for_any(*, sizes: Sequence[str], strides: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Return a `triton.jit` decorator for a kernel that is not recompiled for every batch size.

    By default, Triton compiles separate kernels for integer arguments that are 1 or a multiple of
    16. For batch sizes and lengths, which may differ in every call, that would be many kernels.

    Args:
        sizes: arguments that Triton must not specialise on at all.
        strides: arguments that Triton may specialise on only if they are 1.
    """
    return triton.jit(do_not_specialize=list(sizes), do_not_specialize_on_alignment=list(strides))


@triton.jit
@no_type_check
def products(
    x_high,
    x_low,
    x_steps,
    x_real,
    y_high,
    y_low,
    y_steps,
    y_real,
    features,
    TERMS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return the (BLOCK_X, BLOCK_Y) products of the steps `x_steps` and `y_steps` of a pair.

    The pointers lead to the first steps of both sequences, in the format of
    `clipseq.engine.halves`. Padded steps are not read and count as zero.
    """
    total = tl.zeros((BLOCK_X, BLOCK_Y), tl.float32)
    for first in range(0, features, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x_at = x_steps[:, None] * features + d[None, :]
        y_at = y_steps[None, :] * features + d[:, None]
        x = tl.load(x_high + x_at, mask=x_real[:, None], other=0.0)
        y = tl.load(y_high + y_at, mask=y_real[None, :], other=0.0)
        total = tl.dot(x, y, total)
        if TERMS == 3:
            x_rest = tl.load(x_low + x_at, mask=x_real[:, None], other=0.0)
            y_rest = tl.load(y_low + y_at, mask=y_real[None, :], other=0.0)
            total = tl.dot(x, y_rest, total)
            total = tl.dot(x_rest, y, total)
    return total
