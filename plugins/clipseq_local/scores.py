"""The scores of all pairs and their gradient, as operators that torch.compile takes whole.

Forward keeps where each maximum was found, in the narrowest integers that hold it, and backward
is a gather and a scatter of the few cells that were: no matrix product. Where the indices of all
pairs would take more memory than the steps themselves they are found again instead, so that memory
grows with the batch and not with its square.

Padded steps are copies of the last real one: they change no maximum, so cells need no mask.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn.functional import embedding_bag

from clipseq.kernels import use_kernels

CELLS = 2**19
"""Most cells (T·L·pairs) of a tile: what fits the cache, and bounds the memory."""


def local_scores(
    x: Float[Tensor, "B T D"],
    y: Float[Tensor, "C L D"],
    x_lengths: Int[Tensor, "B"],
    y_lengths: Int[Tensor, "C"],
) -> Float[Tensor, "B C"]:
    """Symmetrised mean MaxSim of every pair of x and y, both packed to the front.

    Where several cells are the largest, one of them (the same in every run) has the gradient.
    """
    (batch, steps, _), (others, length, _) = x.shape, y.shape
    size = _index_type(max(steps, length)).itemsize * batch * others * (steps + length)
    needed = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    keep = bool(needed and size <= x.element_size() * (x.numel() + y.numel()))
    return maxima(x, y, x_lengths, y_lengths, keep)[0]


@torch.library.custom_op("clipseq::local_maxima", mutates_args=())
def maxima(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The scores (B, C) and, if to `keep`, where in y (B, T, C) and x (B, C, L) the maxima are."""
    if keep:
        best_y, best_x = _no_indices(x, y)
    else:
        best_y, best_x = (x_lengths.new_empty(0) for _ in range(2))
    if use_kernels(x):
        from clipseq_local import triton_kernels

        places = (best_y, best_x) if keep else (None, None)
        return triton_kernels.forward(x, y, x_lengths, y_lengths, *places), best_y, best_x
    scores = x.new_empty(len(x), len(y))
    for rows, columns, products in _tiles(x, y, x_lengths, y_lengths):
        t, length = x_lengths[rows], y_lengths[columns]
        if keep:
            over_y, over_x = _search(products, rows, columns, t, length, best_y, best_x)
        else:
            over_y, over_x = products.amax(3).mT, products.amax(1)
        means = _real_mean(over_y, t[:, None]) + _real_mean(over_x, length[None])
        scores[rows[:, None], columns] = means / 2
    return scores, best_y, best_x


@torch.library.custom_op("clipseq::local_maxima_backward", mutates_args=())
def maxima_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    best_y: Tensor,
    best_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients to x and y."""
    if use_kernels(x):
        from clipseq_local import triton_kernels

        places = (best_y, best_x) if best_y.numel() else (None, None)
        return triton_kernels.backward(grad, x, y, x_lengths, y_lengths, *places)
    grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
    steps, length = x.shape[1], y.shape[1]
    rows = max(1, _ENTRIES // (len(y) * max(steps, length)))
    real_x = torch.arange(steps, device=x.device) < x_lengths[:, None]
    real_y = torch.arange(length, device=x.device) < y_lengths[:, None]
    for first in range(0, len(x), rows):
        block = slice(first, first + rows)
        if best_y.numel():
            where_y, where_x = best_y[block], best_x[block]
        else:
            where_y, where_x = _no_indices(x[block], y)
            t = x_lengths[block]
            for i, j, products in _tiles(x[block], y, t, y_lengths):
                _search(products, i, j, t[i], y_lengths[j], where_y, where_x)
        share = grad[block] / 2
        weight_y = (share / x_lengths[block, None])[:, None, :] * real_x[block, :, None]
        weight_x = (share / y_lengths)[:, :, None] * real_y
        _spread(
            x[block], y, where_y.long(), where_x.long(), weight_y, weight_x, grad_x[block], grad_y
        )
    return grad_x, grad_y


@maxima.register_fake
def _(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    scores = x.new_empty(x.shape[0], y.shape[0])
    if keep:
        return scores, *_no_indices(x, y)
    return scores, x_lengths.new_empty(0), x_lengths.new_empty(0)


@maxima_backward.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *maxima_backward(grad, *ctx.saved_tensors), None, None, None


maxima.register_autograd(_differentiate, setup_context=_save)


def _search(
    products: Float[Tensor, "b T c L"],
    rows: Int[Tensor, "b"],
    columns: Int[Tensor, "c"],
    t: Int[Tensor, "b"],
    length: Int[Tensor, "c"],
    best_y: Integer[Tensor, "B S C"],
    best_x: Integer[Tensor, "B C M"],
) -> tuple[Float[Tensor, "b c T"], Float[Tensor, "b c L"]]:
    """The maxima of a tile; where they are is written to `best_y` and `best_x`."""
    over_y, where_y = products.max(3)
    over_x, where_x = products.max(1)
    # A padded step stands for the last real one.
    where_y, where_x = where_y.clamp(max=length - 1), where_x.clamp(max=(t - 1)[:, None, None])
    steps, others = products.shape[1], products.shape[3]
    best_y[:, :steps][rows[:, None], :, columns] = where_y.mT.to(best_y.dtype)
    best_x[:, :, :others][rows[:, None], columns] = where_x.to(best_x.dtype)
    return over_y.mT, over_x


def _real_mean(
    values: Float[Tensor, "b c n"], lengths: Int[Tensor, "#b #c"]
) -> Float[Tensor, "b c"]:
    real = torch.arange(values.shape[2], device=values.device) < lengths[..., None]
    return values.mul_(real).sum(2) / lengths


def _index_type(steps: int) -> torch.dtype:
    return torch.uint8 if steps <= 2**8 else torch.int16 if steps <= 2**15 else torch.int32


def _no_indices(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Room for indices (B, T, C) and (B, C, L). Zeros, as padding is read too, with no weight."""
    (batch, steps, _), (others, length, _) = x.shape, y.shape
    dtype = _index_type(max(steps, length))
    return (
        x.new_zeros(batch, steps, others, dtype=dtype),
        x.new_zeros(batch, others, length, dtype=dtype),
    )


def _spread(
    x: Float[Tensor, "b T D"],
    y: Float[Tensor, "C L D"],
    where_y: Int[Tensor, "b T C"],
    where_x: Int[Tensor, "b C L"],
    weight_y: Float[Tensor, "b T C"],
    weight_x: Float[Tensor, "b C L"],
    grad_x: Float[Tensor, "b T D"],
    grad_y: Float[Tensor, "C L D"],
) -> None:
    """Write grad_x and add to grad_y: each maximum gives its two steps each other, weighted."""
    (rows, steps, size), (others, length, _) = x.shape, y.shape
    flat_x, flat_y = x.reshape(-1, size), y.reshape(-1, size)
    # Steps by their number in the batch.
    where_y = where_y + torch.arange(others, device=x.device) * length
    where_x = where_x + torch.arange(rows, device=x.device)[:, None, None] * steps
    own_x = torch.arange(rows * steps, device=x.device).view(rows, steps, 1).expand_as(where_y)
    own_y = torch.arange(others * length, device=x.device).view(others, length).expand_as(where_x)
    to_x = embedding_bag(
        where_y.flatten(0, 1), flat_y, per_sample_weights=weight_y.flatten(0, 1), mode="sum"
    )
    to_x += _collected(flat_y, where_x, own_y, weight_x, len(flat_x))
    grad_x.copy_(to_x.view_as(grad_x))
    to_y = embedding_bag(
        where_x.permute(1, 2, 0).reshape(-1, rows),
        flat_x,
        per_sample_weights=weight_x.permute(1, 2, 0).reshape(-1, rows),
        mode="sum",
    )
    to_y += _collected(flat_x, where_y, own_x, weight_y, len(flat_y))
    grad_y += to_y.view_as(grad_y)


def _collected(
    values: Float[Tensor, "N D"], targets: Tensor, sources: Tensor, weights: Tensor, count: int
) -> Float[Tensor, "count D"]:
    """For each target, the weighted sum of its sources."""
    targets, order = targets.flatten().sort(stable=True)
    starts = torch.searchsorted(targets, torch.arange(count, device=targets.device))
    return embedding_bag(
        sources.flatten()[order],
        values,
        starts,
        per_sample_weights=weights.flatten()[order],
        mode="sum",
    )


def _tiles(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor
) -> Iterator[tuple[Tensor, Tensor, Float[Tensor, "b T c L"]]]:
    """Items of x, items of y, and the products of their steps, cut to the longest."""
    # Sorted, so that a tile of short sequences is small, whatever the longest one is.
    x_order, y_order = x_lengths.argsort(descending=True), y_lengths.argsort(descending=True)
    x_sorted, y_sorted = x_lengths[x_order].tolist(), y_lengths[y_order].tolist()
    column, room = 0, x.new_empty(0)
    while column < len(y_order):
        others = y_sorted[column]
        columns = y_order[column : column + max(1, _COLUMNS // others)]
        column += len(columns)
        y_tile = _filled(y, y_lengths, columns, others)
        row = 0
        while row < len(x_order):
            steps = x_sorted[row]
            rows = x_order[row : row + max(1, CELLS // (len(y_tile) * steps))]
            row += len(rows)
            x_tile = _filled(x, x_lengths, rows, steps)
            cells = len(x_tile) * len(y_tile)
            if len(room) < cells:
                room = x.new_empty(cells)
            products = room[:cells].view(len(x_tile), len(y_tile))
            torch.mm(x_tile, y_tile.mT, out=products)
            yield rows, columns, products.view(len(rows), steps, len(columns), others)


def _filled(values: Tensor, lengths: Tensor, items: Tensor, steps: int) -> Tensor:
    """The first steps of some items, one after the other; padding repeats the last real one."""
    step = torch.arange(steps, device=values.device).clamp(max=(lengths[items] - 1)[:, None])
    return values[items[:, None], step].flatten(0, 1)


_COLUMNS = 2**11
"""Most steps of y in a tile."""

_ENTRIES = 2**16
"""Most indices that backward works on at once."""
