"""The scores of all pairs and their gradient, as operators that torch.compile takes whole.

Forward keeps where each maximum was found, in the narrowest integers that hold it, and backward
is a gather and a scatter of the few cells that were: no matrix product. Where the indices of all
pairs would take more memory than the steps themselves they are found again instead, so that memory
grows with the batch and not with its square.

Padded steps are copies of the last real one: they change no maximum, so cells need no mask.

torch looks for where a maximum is one cell at a time, which would take half as long as the product.
So it is computed: the cells that are the largest of theirs become 1 and the others 0, times a
number that falls from step to step, and the largest of these tells the first. In a tile the items
of y are innermost and its steps before them, so that neither maximum runs along memory: one cell of
each of many items at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn.functional import embedding_bag

from clipseq.engine.kernels import use_kernels
from clipseq.engine.workspace import Room

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
    for tile in _tiles(x, x_lengths, _columns(y, y_lengths)):
        scores[tile.where] = tile.scores()
        if keep:
            tile.search(best_y, best_x)
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
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    # As many x as may be with every y, or one with some.
    each = max(x.shape[1], y.shape[1])
    some_y = max(1, _ENTRIES // each)
    some_x = max(1, some_y // len(y))
    for start in range(0, len(y), some_y):
        ys = slice(start, start + some_y)
        columns = [] if best_y.numel() else _columns(y[ys], y_lengths[ys])
        for first in range(0, len(x), some_x):
            xs = slice(first, first + some_x)
            if best_y.numel():
                found = best_y[xs, :, ys], best_x[xs, ys]
            else:
                found = _no_indices(x[xs], y[ys])
                for tile in _tiles(x[xs], x_lengths[xs], columns):
                    tile.search(*found)
            shares = grad[xs, ys] / 2
            grad_x[xs] += _spread(
                x[xs], y[ys], x_lengths[xs], y_lengths[ys], shares, *found, grad_y[ys]
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
    with torch.autocast(grad.device.type, enabled=False):  # of whoever calls backward
        return *maxima_backward(grad, *ctx.saved_tensors), None, None, None


maxima.register_autograd(_differentiate, setup_context=_save)


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
    y: Float[Tensor, "c L D"],
    x_lengths: Int[Tensor, "b"],
    y_lengths: Int[Tensor, "c"],
    shares: Float[Tensor, "b c"],
    where_y: Integer[Tensor, "b T c"],
    where_x: Integer[Tensor, "b c L"],
    grad_y: Float[Tensor, "c L D"],
) -> Float[Tensor, "b T D"]:
    """The gradient to x; that to y is added. A maximum gives its two steps each other, weighted.

    `shares` is the gradient to each direction's mean.
    """
    (rows, steps, size), (others, length, _) = x.shape, y.shape
    real_x = torch.arange(steps, device=x.device) < x_lengths[:, None]
    real_y = torch.arange(length, device=x.device) < y_lengths[:, None]
    weight_y = (shares / x_lengths[:, None])[:, None, :] * real_x[:, :, None]
    weight_x = (shares / y_lengths)[:, :, None] * real_y
    flat_x, flat_y = x.reshape(-1, size), y.reshape(-1, size)
    # Steps by their number in the batch.
    steps_x = torch.arange(rows * steps, device=x.device).view(rows, steps, 1)
    steps_y = torch.arange(others * length, device=x.device).view(others, length)
    where_y = where_y.long() + steps_y[:, 0]
    where_x = where_x.long() + steps_x[:, :1]
    ends_x = torch.cat([steps_x.expand_as(where_y).flatten(), where_x.flatten()])
    ends_y = torch.cat([where_y.flatten(), steps_y.expand_as(where_x).flatten()])
    weights = torch.cat([weight_y.flatten(), weight_x.flatten()])
    grad_y += _collected(flat_x, ends_y, ends_x, weights, len(flat_y)).view_as(grad_y)
    return _collected(flat_y, ends_x, ends_y, weights, len(flat_x)).view_as(x)


def _collected(
    values: Float[Tensor, "N D"], targets: Tensor, sources: Tensor, weights: Tensor, count: int
) -> Float[Tensor, "count D"]:
    """For each target, the weighted sum of its sources."""
    # The fewer bits, the sooner a sort is done.
    targets, order = targets.to(_index_type(count)).sort(stable=True)
    starts = torch.searchsorted(
        targets, torch.arange(count, dtype=targets.dtype, device=targets.device)
    )
    return embedding_bag(
        sources[order],
        values,
        starts,
        per_sample_weights=weights[order],
        mode="sum",
    )


Items = slice | Int[Tensor, " n"]
"""Where some sequences are in the batch: neighbours are a slice, which copies nothing."""


@attrs.frozen(eq=False)
class _Columns:
    """Items of y of like lengths, cut to the longest: those that one tile has."""

    items: Items
    lengths: Int[Tensor, " c"]
    values: Float[Tensor, "N D"]  # N = L·c


@attrs.frozen(eq=False)
class _Tile:
    """The products of the steps of some x and y, and their maxima."""

    where: tuple[Items, Items]  # in (B, C)
    x_lengths: Int[Tensor, " b"]
    y_lengths: Int[Tensor, " c"]
    products: Float[Tensor, "b T L c"]
    spare: Float[Tensor, "b T L c"]
    over_y: Float[Tensor, "b T c"]
    over_x: Float[Tensor, "b L c"]

    @classmethod
    def made(
        cls, rows: Items, columns: _Columns, lengths: Tensor, products: Tensor, spare: Tensor
    ) -> "_Tile":
        over_y = _largest(products, spare).clone()  # `spare` will be written to
        over_x = products.amax(1)
        where = rows, columns.items
        if not isinstance(rows, slice) and not isinstance(columns.items, slice):
            where = rows[:, None], columns.items
        return cls(where, lengths, columns.lengths, products, spare, over_y, over_x)

    def scores(self) -> Float[Tensor, "b c"]:
        """Both maxima's means over real steps, averaged."""
        steps, length = self.products.shape[1:3]
        step = torch.arange(steps, device=self.x_lengths.device)
        real_x = step[:, None] < self.x_lengths[:, None, None]
        real_y = torch.arange(length, device=step.device)[:, None] < self.y_lengths
        mean_y = (self.over_y * real_x).sum(1) / self.x_lengths[:, None]
        return (mean_y + (self.over_x * real_y).sum(1) / self.y_lengths) / 2

    def search(self, best_y: Integer[Tensor, "B S C"], best_x: Integer[Tensor, "B C M"]) -> None:
        """Write where the maxima are."""
        steps, length = self.products.shape[1:3]
        torch.eq(self.products, self.over_y[:, :, None], out=self.spare)
        self.spare.mul_(_falling(self.spare, length)[:, None])
        where_y = length - _largest(self.spare, self.spare)
        torch.eq(self.products, self.over_x[:, None], out=self.spare)
        self.spare.mul_(_falling(self.spare, steps)[:, None, None])
        where_x = (steps - self.spare.amax(1)).mT
        # A padded step stands for the last real one.
        where_y = where_y.clamp_(max=self.y_lengths - 1).mT.to(best_y.dtype)
        where_x = where_x.clamp_(max=self.x_lengths[:, None, None] - 1).to(best_x.dtype)
        best_y.mT[:, :, :steps][self.where] = where_y
        best_x[:, :, :length][self.where] = where_x


def _falling(like: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, 0, -1, dtype=like.dtype, device=like.device)


def _largest(values: Float[Tensor, "b T L c"], spare: Float[Tensor, "b T L c"]) -> Tensor:
    """The largest over L; `spare`, which may be `values`, may be written to."""
    steps, count = values.shape[2:]
    # torch's own takes 32 numbers of each step at once, and what is left over one by one: then
    # half against half, several times as quickly.
    if steps > 1 and count % _AT_ONCE <= count / 8:
        return values.amax(2)
    while steps > 1:
        half = steps // 2
        kept = spare[:, :, :half]
        torch.maximum(values[:, :, :half], values[:, :, steps - half : steps], out=kept)
        if steps % 2 and values is not spare:
            spare[:, :, half] = values[:, :, half]
        values, steps = spare, steps - half
    return values[:, :, 0]


def _tiles(x: Tensor, lengths: Tensor, columns: Sequence[_Columns]) -> Iterator[_Tile]:
    """The tiles of all x, from the longest to the shortest, with every y."""
    order = lengths.argsort(descending=True, stable=True)
    sizes, numbers = lengths[order].tolist(), order.tolist()
    widest = max(len(column.values) for column in columns)
    room = Room(x)
    first = 0
    while first < len(numbers):
        steps = sizes[first]
        rows = _items(numbers[first : first + max(1, CELLS // (widest * steps))], order)
        x_lengths = lengths[rows]
        first += len(x_lengths)
        x_tile = _filled(x, x_lengths, rows, steps).flatten(0, 1)
        for column in columns:
            count = len(column.lengths)
            products = room.take("products", len(x_tile), len(column.values))
            torch.mm(x_tile, column.values.mT, out=products)
            shape = len(x_lengths), steps, len(column.values) // count, count
            spare = room.take("spare", *shape)
            yield _Tile.made(rows, column, x_lengths, products.view(shape), spare)


def _columns(y: Tensor, lengths: Tensor) -> list[_Columns]:
    # Sorted, so that a tile of short sequences is small, whatever the longest one is.
    order = lengths.argsort(descending=True, stable=True)
    sizes, numbers, columns, first = lengths[order].tolist(), order.tolist(), [], 0
    while first < len(numbers):
        steps = sizes[first]
        items = _items(numbers[first : first + _items_of(steps)], order)
        y_lengths = lengths[items]
        first += len(y_lengths)
        values = _filled(y, y_lengths, items, steps).transpose(0, 1)
        columns.append(_Columns(items, y_lengths, values.flatten(0, 1)))
    return columns


def _items(numbers: list[int], like: Tensor) -> Items:
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return like.new_tensor(numbers)


def _filled(
    values: Float[Tensor, "B S D"], lengths: Int[Tensor, " n"], items: Items, steps: int
) -> Float[Tensor, "n steps D"]:
    """The first steps of some items, longest first; padding repeats the last real one."""
    if isinstance(items, slice):
        if int(lengths[-1]) == steps:
            return values[items, :steps]
        items = torch.arange(items.start, items.stop, device=values.device)
    step = torch.arange(steps, device=values.device).clamp(max=(lengths - 1)[:, None])
    rows = items[:, None] * values.shape[1] + step
    taken = values.flatten(0, 1).index_select(0, rows.flatten())
    return taken.view(*rows.shape, values.shape[2])


def _items_of(steps: int) -> int:
    """How many items of y a tile has, of so many steps."""
    count = max(1, _COLUMNS // steps)
    # See `_largest`.
    return count if count < 3 * _AT_ONCE / 4 else round(count / _AT_ONCE) * _AT_ONCE


_COLUMNS = 2**11
"""About the most steps of y in a tile."""

_AT_ONCE = 32
"""Numbers that torch's reductions work on together."""

_ENTRIES = 2**15
"""Most indices that backward works on at once."""
