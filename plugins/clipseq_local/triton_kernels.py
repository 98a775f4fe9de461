r"""Triton kernels of `clipseq_local.scores.maxima`.

Forward: each program handles one pair, and multiplies 128 steps of x by up to 128 of y at a time,
on tensor cores, in blocks of 32 features, with three blocks in flight. The tile stays in registers:
its row maxima are final and its column maxima are carried from tile to tile, so the program writes
one score, and t + l indices if they are kept. Programs that run side by side share one y and eight
x, which therefore come from the L2 cache. A y of more than 128 steps is cut into blocks; each block
writes its maxima, for a bounded number of rows at a time, and torch takes the maximum over the
blocks.

Backward is a gather and a scatter, written as a matrix product, since atomic additions do not have
a fixed order. Pair (i, j) adds to the gradient of x_i

.. math::
    \frac{g_{ij}}{2tl} \big( w\,l\,[\text{best}_y(a) = b] + (2 - w)\,t\,[\text{best}_x(b) = a]
        \big)_{ab} \, y_j

(w, out of 2, is the weight of the mean over x) and one program per block of x_i loops over all j,
so that no two programs add to the same number. The matrix is built in registers, from the indices.
It holds integers of at most t + l, or even ones of at most twice the longer, which half precision
represents exactly up to 2048 and 4096 (for longer sequences, its two parts are multiplied
separately), so two products, with the high and the low halves of y, give the precision of float32.
The gradient to y is computed in the same way with the sides swapped. Indices that were not kept are
found again, for as many rows at a time as `WORKSPACE` holds.

The 8 warps of a forward program use nearly all registers of a multiprocessor (compiled for compute
capability 9.0: 255 per thread where indices are kept, none spilled) and 96 KiB of its shared
memory. The 4 warps of a backward program leave room for another program.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipseq.engine import FEATURES, halves, jit_for_any, products, terms
from clipseq_local.scores import empty_places

WORKSPACE = 2**28
"""Largest number of bytes for indices, or for maxima of blocks, in addition to the results."""


def forward(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, keep: bool, x_weight: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores (B, C) and, if `keep`, the places of the maxima: (B, T, C), (B, C, L)."""
    best_y, best_x = empty_places(x, y, x_lengths, y_lengths, keep)
    places = (best_y, best_x) if keep else (None, None)
    with torch.cuda.device_of(x):
        scores = _search(halves(x), halves(y), x_lengths, y_lengths, x_weight, *places)
    return scores, best_y, best_x


def backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    x_weight: int,
    best_y: Tensor,
    best_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to x and y, finding the places again where they were not kept."""
    (batch, steps, _), (others, length, _) = x.shape, y.shape
    grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
    kept = best_y.numel() > 0
    rows = batch
    kind = torch.int16 if max(steps, length) <= 2**15 else torch.int32
    if not kept:
        rows = max(1, WORKSPACE // (kind.itemsize * others * (steps + length)))
    with torch.cuda.device_of(x):
        x_halves, y_halves = halves(x), halves(y)
        for first in range(0, batch, rows):
            block = slice(first, first + rows)
            some = x_halves[0][block], x_halves[1][block]
            t, share = x_lengths[block], grad[block]
            if kept:
                where_y, where_x = best_y, best_x
            else:
                where_y = x.new_empty(len(t), steps, others, dtype=kind)
                where_x = x.new_empty(len(t), others, length, dtype=kind)
                _search(some, y_halves, t, y_lengths, x_weight, where_y, where_x)
            to_y, to_x = where_y.mT, where_x  # (B, C, T) and (B, C, L)
            _spread(grad_x[block], share, y_halves, t, y_lengths, x_weight, to_y, to_x, False)
            swapped = to_x.transpose(0, 1), to_y.transpose(0, 1)
            _spread(grad_y, share.mT, some, y_lengths, t, 2 - x_weight, *swapped, first > 0)
    return grad_x, grad_y


def _search(
    x: tuple[Tensor, Tensor],
    y: tuple[Tensor, Tensor],
    x_lengths: Tensor,
    y_lengths: Tensor,
    x_weight: int,
    best_y: Tensor | None,
    best_x: Tensor | None,
) -> Tensor:
    (batch, steps, features), (others, length, _) = x[0].shape, y[0].shape
    scores = x_lengths.new_empty(batch, others, dtype=torch.float32)
    block_y = min(128, max(16, triton.next_power_of_2(length)))
    blocks = triton.cdiv(length, block_y)
    keep = best_y is not None
    kind = torch.int32 if best_y is None else best_y.dtype
    rows = batch
    if blocks > 1:
        # The results of the blocks, and then torch's maximum over the blocks with its indices.
        rows = max(1, WORKSPACE // (others * steps * (8 * blocks + 16)))
    for first in range(0, batch, rows):
        some = slice(first, first + rows)
        count = min(rows, batch - first)
        partial = blocks, count, others, steps
        tops = scores.new_full(partial if blocks > 1 else (1,), -torch.inf)
        places = tops.new_zeros(tops.shape if keep else (1,), dtype=kind)
        over_x = scores.new_zeros(partial[:3] if blocks > 1 else (1,))
        _maxima[(triton.cdiv(count, _GROUP) * _GROUP * others, blocks)](
            x[0][some],
            x[1][some],
            y[0],
            y[1],
            x_lengths[some],
            y_lengths,
            scores[some],
            places if best_y is None else best_y[some],
            places if best_x is None else best_x[some],
            tops,
            places,
            over_x,
            count,
            others,
            steps,
            length,
            features,
            TERMS=terms(),
            X_WEIGHT=x_weight,
            KEEP=keep,
            WHOLE=blocks == 1,
            GROUP=_GROUP,
            BLOCK_X=min(128, max(16, triton.next_power_of_2(steps))),
            BLOCK_Y=block_y,
            BLOCK_D=FEATURES,
            num_warps=8,
            num_stages=3,
        )
        if blocks > 1:
            top, block = tops.max(0)
            t = x_lengths[some, None]
            real = torch.arange(steps, device=t.device) < t
            over_y = top.masked_fill_(~real[:, None], 0.0).sum(2) / t
            over_y, over_x = x_weight * over_y, (2 - x_weight) * over_x.sum(0)
            scores[some] = (over_y + over_x / y_lengths) / 2
            if best_y is not None:
                best_y[some] = places.gather(0, block[None])[0].mT
    return scores


_GROUP = 8
"""Number of items of x that neighbouring programs share, going from one y to the next."""


@jit_for_any(sizes=["batch", "others", "steps", "length"])
@no_type_check
def _maxima(
    x_high,
    x_low,
    y_high,
    y_low,
    x_lengths,
    y_lengths,
    scores,
    best_y,
    best_x,
    tops,
    places,
    over_x,
    batch,
    others,
    steps,
    length,
    features,
    TERMS: tl.constexpr,
    X_WEIGHT: tl.constexpr,
    KEEP: tl.constexpr,
    WHOLE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program, block = tl.program_id(0), tl.program_id(1)
    j = (program // GROUP) % others
    i = program // (GROUP * others) * GROUP + program % GROUP
    if i >= batch:
        return
    t, l = tl.load(x_lengths + i).to(tl.int32), tl.load(y_lengths + j).to(tl.int32)  # noqa: E741
    if block * BLOCK_Y >= l:
        return
    i, j = i.to(tl.int64), j.to(tl.int64)
    x_high += i * steps * features
    x_low += i * steps * features
    y_high += j * length * features
    y_low += j * length * features
    pair = i * others + j
    b = block * BLOCK_Y + tl.arange(0, BLOCK_Y)
    b_real = b < l
    column_top = tl.full((BLOCK_Y,), -float("inf"), tl.float32)
    column_place = tl.zeros((BLOCK_Y,), tl.int32)
    row_sums = tl.zeros((BLOCK_X,), tl.float32)
    for first in range(0, t, BLOCK_X):
        a = first + tl.arange(0, BLOCK_X)
        a_real = a < t
        tile = products(
            x_high,
            x_low,
            a,
            a_real,
            y_high,
            y_low,
            b,
            b_real,
            features,
            TERMS,
            BLOCK_X,
            BLOCK_Y,
            BLOCK_D,
        )
        tile = tl.where(a_real[:, None] & b_real[None, :], tile, -float("inf"))
        row_top = tl.max(tile, 1)
        if KEEP:
            # The first of equal maxima wins. If the maximum is NaN, any place is as good.
            at = tl.where(tile == row_top[:, None], b[None, :], length - 1)
            row_place = tl.min(at, 1)
        if WHOLE:
            row_sums += tl.where(a_real, row_top, 0.0)
            if KEEP:
                to = best_y + (i * steps + a) * others + j
                tl.store(to, row_place.to(best_y.dtype.element_ty), mask=a_real)
        else:
            to = (block.to(tl.int64) * batch * others + pair) * steps + a
            tl.store(tops + to, row_top, mask=a_real)
            if KEEP:
                tl.store(places + to, row_place.to(places.dtype.element_ty), mask=a_real)
        new_top = tl.max(tile, 0)
        if KEEP:
            at = tl.where(tile == new_top[None, :], a[:, None], steps - 1)
            new_place = tl.min(at, 0)
            column_place = tl.where(new_top > column_top, new_place, column_place)
        column_top = tl.maximum(column_top, new_top)
    if KEEP:
        to = best_x + pair * length + b
        tl.store(to, column_place.to(best_x.dtype.element_ty), mask=b_real)
    column_sum = tl.sum(tl.where(b_real, column_top, 0.0), 0)
    if WHOLE:
        mean_y, mean_x = tl.sum(row_sums, 0) / t, column_sum / l
        tl.store(scores + pair, (X_WEIGHT * mean_y + (2 - X_WEIGHT) * mean_x) / 2)
    else:
        tl.store(over_x + block.to(tl.int64) * batch * others + pair, column_sum)


def _spread(
    to: Tensor,
    grad: Tensor,
    other: tuple[Tensor, Tensor],
    own_lengths: Tensor,
    other_lengths: Tensor,
    own_weight: int,
    own_places: Tensor,
    other_places: Tensor,
    add: bool,
) -> None:
    """Write or add to `to` the gradient (n, S, D) of one side, given `grad` (n, m).

    The mean over this side has the weight `own_weight`, out of 2.
    """
    count, steps, features = to.shape
    _, length, padded = other[0].shape
    apart = steps + length > 2**11
    block = min(64, max(16, triton.next_power_of_2(steps)))
    # With four warps, both products of a block have the same layout. With more warps, or more
    # features, the sum would move through shared memory from one to the next.
    block_d = min(64, triton.next_power_of_2(padded))
    grid = count, triton.cdiv(steps, block), triton.cdiv(features, block_d)
    _gradient[grid](
        to,
        grad,
        other[0],
        other[1],
        own_lengths,
        other_lengths,
        own_places,
        other_places,
        len(other_lengths),
        steps,
        length,
        features,
        padded,
        *to.stride(),
        *grad.stride(),
        *own_places.stride(),
        *other_places.stride(),
        TERMS=terms(),
        OWN_WEIGHT=own_weight,
        ADD=add,
        APART=apart,
        BLOCK_A=block,
        BLOCK_B=32,
        BLOCK_D=block_d,
        num_warps=4,
        num_stages=3,
    )


@jit_for_any(
    sizes=["others", "steps", "length"],
    strides=["grad_own", "grad_other", "own_0", "own_1", "own_2", "other_0", "other_1", "other_2"],
)
@no_type_check
def _gradient(
    to,
    grad,
    other_high,
    other_low,
    own_lengths,
    other_lengths,
    own_places,
    other_places,
    others,
    steps,
    length,
    features,
    padded,
    to_0,
    to_1,
    to_2,
    grad_own,
    grad_other,
    own_0,
    own_1,
    own_2,
    other_0,
    other_1,
    other_2,
    TERMS: tl.constexpr,
    OWN_WEIGHT: tl.constexpr,
    ADD: tl.constexpr,
    APART: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    a = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    t = tl.load(own_lengths + i).to(tl.int32)
    real = a < t
    total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    if tl.program_id(1) * BLOCK_A < t:
        for number in range(others):
            j = tl.cast(number, tl.int64)
            l = tl.load(other_lengths + j).to(tl.int32)  # noqa: E741
            share = tl.load(grad + i * grad_own + j * grad_other) / 2
            own = own_places + i * own_0 + j * own_1
            where_b = tl.load(own + a.to(tl.int64) * own_2, mask=real, other=0).to(tl.int32)
            where_a_at = other_places + i * other_0 + j * other_1
            first_row = j * length
            part = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
            part_b = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
            for first in range(0, l, BLOCK_B):
                b = first + tl.arange(0, BLOCK_B)
                b_real = b < l
                where_a = tl.load(where_a_at + b.to(tl.int64) * other_2, mask=b_real, other=0)
                both = real[:, None] & b_real[None, :]
                from_a = (where_b[:, None] == b[None, :]) & both
                from_b = (where_a.to(tl.int32)[None, :] == a[:, None]) & both
                at = (first_row + b)[:, None] * padded + d[None, :]
                inside = b_real[:, None] & (d < padded)[None, :]
                steps_high = tl.load(other_high + at, mask=inside, other=0.0)
                if APART:
                    chosen_a, chosen_b = from_a.to(tl.float16), from_b.to(tl.float16)
                    part = tl.dot(chosen_a, steps_high, part)
                    part_b = tl.dot(chosen_b, steps_high, part_b)
                    if TERMS == 3:
                        steps_low = tl.load(other_low + at, mask=inside, other=0.0)
                        part = tl.dot(chosen_a, steps_low, part)
                        part_b = tl.dot(chosen_b, steps_low, part_b)
                else:
                    chosen = tl.where(from_a, OWN_WEIGHT * l, 0)
                    chosen += tl.where(from_b, (2 - OWN_WEIGHT) * t, 0)
                    part = tl.dot(chosen.to(tl.float16), steps_high, part)
                    if TERMS == 3:
                        steps_low = tl.load(other_low + at, mask=inside, other=0.0)
                        part = tl.dot(chosen.to(tl.float16), steps_low, part)
            if APART:
                total += OWN_WEIGHT * share / t * part + (2 - OWN_WEIGHT) * share / l * part_b
            else:
                total += share / (t * l) * part
    at = to + i * to_0 + a[:, None].to(tl.int64) * to_1 + d[None, :] * to_2
    inside = (a < steps)[:, None] & (d < features)[None, :]
    if ADD:
        total += tl.load(at, mask=inside, other=0.0)
    tl.store(at, total, mask=inside)
