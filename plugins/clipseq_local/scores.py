"""The scores of all pairs and their gradient, as an operator.

Forward keeps the index of each maximum, in the narrowest integer type that can hold it, and
backward gathers and scatters these few cells, without a matrix product. If the indices of all pairs
would take more memory than the steps themselves, backward finds them again, so that memory grows
with the batch and not with its square.

Padded steps are copies of the last real one: they do not change any maximum, so cells need no mask.

torch's own argmax looks at one cell at a time, which would take half as long as the matrix product.
We compute the index instead: cells that equal their maximum become 1 and the others 0, these are
multiplied by a number that falls from step to step, and the largest result identifies the first
such cell. In a tile, the items of y are innermost and its steps come before them, so that neither
maximum is taken along the innermost axis: one operation handles one cell each of many items.
"""

from collections.abc import Iterator, Sequence

import attrs
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn.functional import embedding_bag

from clipseq.engine import Operator, Room, group_by_length, scaled

CELLS = 2**19
"""Largest number of cells (T·L·pairs) in a tile: they fit into the cache, and bound the memory."""


def local_scores(
    x: Float[Tensor, "B T D"],
    y: Float[Tensor, "C L D"],
    x_lengths: Int[Tensor, "B"],
    y_lengths: Int[Tensor, "C"],
    x_weight: int = 1,
) -> Float[Tensor, "B C"]:
    """Return the mean MaxSim of every pair of x and y, both packed to the front.

    The mean over the steps of x has the weight `x_weight`, out of 2, and that over the steps of y
    the rest: 1 symmetrises, 2 takes the best matches of x alone, and 0 those of y. If several cells
    are tied for the maximum, one of them gets the gradient, the same in every run.
    """
    (batch, steps, _), (others, length, _) = x.shape, y.shape
    size = _index_type(max(steps, length)).itemsize * batch * others * (steps + length)
    needed = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    keep = bool(needed and size <= x.element_size() * (x.numel() + y.numel()))
    return maxima(x, y, x_lengths, y_lengths, keep, x_weight)[0]


def empty_places(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """Return memory for indices (B, T, C) and (B, C, L); it is empty unless they are to be kept.

    It is filled with zeros, since the indices of padding are read too, with a weight of zero.
    """
    if not keep:
        return x_lengths.new_empty(0), x_lengths.new_empty(0)
    (batch, steps, _), (others, length, _) = x.shape, y.shape
    dtype = _index_type(max(steps, length))
    return (
        x.new_zeros(batch, steps, others, dtype=dtype),
        x.new_zeros(batch, others, length, dtype=dtype),
    )


def _score(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, keep: bool, x_weight: int
) -> tuple[Tensor, Tensor, Tensor]:
    best_y, best_x = empty_places(x, y, x_lengths, y_lengths, keep)
    scores = x.new_empty(len(x), len(y))
    for tile in _tiles(x, x_lengths, _columns(y, y_lengths)):
        scores[tile.where] = tile.scores(x_weight)
        if keep:
            tile.search(best_y, best_x)
    return scores, best_y, best_x


def _differentiate(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    x_weight: int,
    best_y: Tensor,
    best_x: Tensor,
) -> tuple[Tensor, Tensor]:
    grad, largest = scaled(grad)
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    # A block has as many x as possible with every y, or one x with some y.
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
                found = empty_places(x[xs], y[ys], x_lengths[xs], y_lengths[ys], True)
                for tile in _tiles(x[xs], x_lengths[xs], columns):
                    tile.search(*found)
            shares = grad[xs, ys] / 2
            grad_x[xs] += _spread(
                x[xs], y[ys], x_lengths[xs], y_lengths[ys], shares, x_weight, *found, grad_y[ys]
            )
    return grad_x.mul_(largest), grad_y.mul_(largest)


def _fake(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, keep: bool, x_weight: int
) -> tuple[Tensor, Tensor, Tensor]:
    scores = x.new_empty(x.shape[0], y.shape[0])
    return scores, *empty_places(x, y, x_lengths, y_lengths, keep)


maxima = Operator(
    "clipseq::local_maxima",
    _score,
    _differentiate,
    outputs=("scores", "best_y", "best_x"),
    fake=_fake,
    kernels="clipseq_local.triton_kernels",
)
"""Scores (B, C) and, if `keep`, the places of the maxima in y (B, T, C) and in x (B, C, L)."""


def _index_type(steps: int) -> torch.dtype:
    return torch.uint8 if steps <= 2**8 else torch.int16 if steps <= 2**15 else torch.int32


def _spread(
    x: Float[Tensor, "b T D"],
    y: Float[Tensor, "c L D"],
    x_lengths: Int[Tensor, "b"],
    y_lengths: Int[Tensor, "c"],
    shares: Float[Tensor, "b c"],
    x_weight: int,
    where_y: Integer[Tensor, "b T c"],
    where_x: Integer[Tensor, "b c L"],
    grad_y: Float[Tensor, "c L D"],
) -> Float[Tensor, "b T D"]:
    """Return the gradient to x, and add the gradient to y to `grad_y`.

    Each maximum adds its step of y, weighted, to the gradient of its step of x, and vice versa.
    `shares` is the gradient to each half of the score.
    """
    (rows, steps, size), (others, length, _) = x.shape, y.shape
    real_x = torch.arange(steps, device=x.device) < x_lengths[:, None]
    real_y = torch.arange(length, device=x.device) < y_lengths[:, None]
    weight_y = (x_weight * shares / x_lengths[:, None])[:, None, :] * real_x[:, :, None]
    weight_x = ((2 - x_weight) * shares / y_lengths)[:, :, None] * real_y
    flat_x, flat_y = x.reshape(-1, size), y.reshape(-1, size)
    # Steps are numbered through the batch.
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
    """Return the weighted sum of the sources of each target."""
    # Narrower numbers are sorted faster.
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
"""Positions of sequences in the batch: a slice for neighbours, which copies nothing."""


@attrs.frozen(eq=False)
class _Columns:
    """The items of y in one tile, of similar lengths, cut to the longest."""

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
    def make(
        cls, rows: Items, columns: _Columns, lengths: Tensor, products: Tensor, spare: Tensor
    ) -> "_Tile":
        over_y = _largest(products, spare).clone()  # `spare` is overwritten below
        over_x = products.amax(1)
        where = rows, columns.items
        if not isinstance(rows, slice) and not isinstance(columns.items, slice):
            where = rows[:, None], columns.items
        return cls(where, lengths, columns.lengths, products, spare, over_y, over_x)

    def scores(self, x_weight: int) -> Float[Tensor, "b c"]:
        """Return the weighted mean of both directions, each a mean of maxima over real steps."""
        steps, length = self.products.shape[1:3]
        step = torch.arange(steps, device=self.x_lengths.device)
        real_x = step[:, None] < self.x_lengths[:, None, None]
        real_y = torch.arange(length, device=step.device)[:, None] < self.y_lengths
        mean_y = (self.over_y * real_x).sum(1) / self.x_lengths[:, None]
        mean_x = (self.over_x * real_y).sum(1) / self.y_lengths
        return (x_weight * mean_y + (2 - x_weight) * mean_x) / 2

    def search(self, best_y: Integer[Tensor, "B S C"], best_x: Integer[Tensor, "B C M"]) -> None:
        """Write the places of the maxima."""
        steps, length = self.products.shape[1:3]
        torch.eq(self.products, self.over_y[:, :, None], out=self.spare)
        self.spare.mul_(_falling(self.spare, length)[:, None])
        where_y = length - _largest(self.spare, self.spare)
        torch.eq(self.products, self.over_x[:, None], out=self.spare)
        self.spare.mul_(_falling(self.spare, steps)[:, None, None])
        where_x = (steps - self.spare.amax(1)).mT
        # A padded step is a copy of the last real one.
        where_y = where_y.clamp_(max=self.y_lengths - 1).mT.to(best_y.dtype)
        where_x = where_x.clamp_(max=self.x_lengths[:, None, None] - 1).to(best_x.dtype)
        best_y.mT[:, :, :steps][self.where] = where_y
        best_x[:, :, :length][self.where] = where_x


def _falling(like: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, 0, -1, dtype=like.dtype, device=like.device)


def _largest(values: Float[Tensor, "b T L c"], spare: Float[Tensor, "b T L c"]) -> Tensor:
    """Return the maximum over L; overwrites `spare`, which may be `values`."""
    steps, count = values.shape[2:]
    # torch's own maximum processes 32 numbers of each step at once and the remainder one by one.
    # With a large remainder, taking the maximum of both halves repeatedly is several times as fast.
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
    """Yield the tiles of all x, from the longest to the shortest, with every y."""
    widest = max(len(column.values) for column in columns)
    room = Room(x)
    for group in group_by_length(lengths, lambda steps: max(1, CELLS // (widest * steps))):
        rows = _slice_or_items(group.items)
        x_lengths = lengths[rows]
        x_tile = _filled(x, x_lengths, rows, group.steps).flatten(0, 1)
        for column in columns:
            count = len(column.lengths)
            products = room.take("products", len(x_tile), len(column.values))
            torch.mm(x_tile, column.values.mT, out=products)
            shape = len(x_lengths), group.steps, len(column.values) // count, count
            spare = room.take("spare", *shape)
            yield _Tile.make(rows, column, x_lengths, products.view(shape), spare)


def _columns(y: Tensor, lengths: Tensor) -> list[_Columns]:
    columns = []
    for group in group_by_length(lengths, _items_of_a_tile):
        items = _slice_or_items(group.items)
        y_lengths = lengths[items]
        values = _filled(y, y_lengths, items, group.steps).transpose(0, 1)
        columns.append(_Columns(items, y_lengths, values.flatten(0, 1)))
    return columns


def _slice_or_items(items: Int[Tensor, " n"]) -> Items:
    numbers = items.tolist()
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return items


def _filled(
    values: Float[Tensor, "B S D"], lengths: Int[Tensor, " n"], items: Items, steps: int
) -> Float[Tensor, "n steps D"]:
    """Return the first steps of some items, longest first; padding repeats the last real step."""
    if isinstance(items, slice):
        if int(lengths[-1]) == steps:
            return values[items, :steps]
        items = torch.arange(items.start, items.stop, device=values.device)
    step = torch.arange(steps, device=values.device).clamp(max=(lengths - 1)[:, None])
    rows = items[:, None] * values.shape[1] + step
    taken = values.flatten(0, 1).index_select(0, rows.flatten())
    return taken.view(*rows.shape, values.shape[2])


def _items_of_a_tile(steps: int) -> int:
    """Return the number of items of y in a tile, given the largest number of their steps."""
    count = max(1, _COLUMNS // steps)
    # This is a multiple of the number that `_largest` takes at once.
    return count if count < 3 * _AT_ONCE / 4 else round(count / _AT_ONCE) * _AT_ONCE


_COLUMNS = 2**11
"""Approximate largest number of steps of y in a tile."""

_AT_ONCE = 32
"""Number of values that torch's reductions process at once."""

_ENTRIES = 2**15
"""Largest number of indices that backward works on at once."""
