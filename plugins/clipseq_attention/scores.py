"""The scores of all pairs and their gradient, as operators that torch.compile takes whole.

Both directions share one table of exponentials. With a head's logits ``p = s⟨x_t, y_l⟩``, as long
as they may be exponentiated as they are (see `_LARGEST`), ``e = exp(p)`` divided by its sum over l
is the attention of one direction, and over t that of the other. The products ``e·Y`` are what the
steps attended to, but for that divisor, and their products with the steps are the numerators of
the cosines. So the cells of a tile are written by one matrix product, exponentiated in place (to
base 2, a third of the time in torch), and read by matrix products and sums.

A numerator ``⟨x_t, Σ_l a_l y_l⟩`` is ``Σ_l a_l ⟨x_t, y_l⟩``: its gradients to x_t and y_l, at fixed
attention, are those of the product ⟨x_t, y_l⟩, which the logits are made of as well. So backward
adds up one gradient to ⟨x_t, y_l⟩, and by way of the attended values only that of their norm. The
one to the products is a product of matrices once more; what is common to all keys of a query rides
in it as one more feature that is 1 in the other factor.

Layout: one x, the longer side, against several y of like lengths. A head of the tile is one
(c·L, T) matrix and so is everything per step: features first, steps innermost, so that what differs
from step to step meets long rows. What is padding (y to the longest of the tile, x to a width that
matrix products like) is left out by two more features of the logits' factors: 1 on one side and, on
the other, 0 for a real step and far below zero for padding.
"""

import math
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad, threshold

from clipseq.engine.gradients import scaled
from clipseq.engine.kernels import use_kernels
from clipseq.engine.workspace import Room

CELLS, CELLS_ELSEWHERE = 2**19, 2**25
"""Most cells (H·T·L·pairs) of a tile: on a CPU what fits the cache; elsewhere enough that starting
some fifty operations a tile takes less time than they do. Bounds the memory: four times as many."""

_WIDTH = 8
"""T is padded to a multiple of it: odd rows cost matrix products a third of their speed."""

_LARGEST = {torch.float32: 60.0, torch.float64: 500.0}
"""Logits no larger than this are exponentiated without a shift: what they are summed to, multiplied
with and divided by stays in range."""

_NOTHING = 1e-6
"""Norm of what was attended to (of unit vectors) that has no direction; float32 rounds below it."""

_NEVER = -1e30
"""Logit of a padded step; finite, so that differences are never NaN."""


@torch.library.custom_op("clipseq::attention_scores", mutates_args=())
def attention_scores(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, scale: Tensor
) -> Tensor:
    """(B, C) scores of heads x (B, H, T, d) and y (C, H, L, d), both packed to the front.

    `scale`, a scalar, is what products are multiplied by before the softmax.
    """
    if use_kernels(x):
        from clipseq_attention import triton_kernels

        if triton_kernels.supported(x):
            return triton_kernels.forward(x, y, x_lengths, y_lengths, scale)
    if _swapped(x, y):
        return attention_scores(y, x, y_lengths, x_lengths, scale).T.contiguous()
    groups = _groups(x, y, y_lengths)
    shared = _shared(x, y, groups, scale)
    # Of each group in its order.
    parts = [x.new_empty(len(x), len(group.real)) for group in groups]
    tiles = _Tiles(x)
    for i, one in _ones(x, x_lengths, scale):
        for group, part, one_table in zip(groups, parts, shared[i], strict=True):
            tile = tiles.take(group, one)
            tile.attend(group, one, one_table)
            over_y = tile.over_y.cosines(one.queries).view(len(group.real), -1)
            over_x = tile.over_x.cosines(group.queries).view_as(group.real)
            mean = over_x.mul_(group.real).sum(1).div_(group.lengths)
            torch.add(mean, over_y[:, : one.steps].mean(1), out=part[i])
    scores = x.new_empty(len(x), len(y))
    scores[:, torch.cat([group.items for group in groups])] = torch.cat(parts, 1).div_(2)
    return scores


@torch.library.custom_op("clipseq::attention_scores_backward", mutates_args=())
def attention_scores_backward(
    grad: Tensor,
    scores: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, y and scale, every tile computed again: inputs and scores were kept."""
    if use_kernels(x):
        from clipseq_attention import triton_kernels

        if triton_kernels.supported(x):
            return triton_kernels.backward(grad, x, y, x_lengths, y_lengths, scale)
    if _swapped(x, y):
        grad_y, grad_x, grad_scale = attention_scores_backward(
            grad.T, scores.T, y, x, y_lengths, x_lengths, scale
        )
        return grad_x, grad_y, grad_scale
    grad, largest = scaled(grad)
    grad_x, (_, heads, _, size) = torch.zeros_like(x), x.shape
    groups = _groups(x, y, y_lengths)
    shared = _shared(x, y, groups, scale)
    times = float(scale)
    # Of the cosines, times scale.
    shares = [
        (
            (grad[:, group.items] * (scale / (2 * x_lengths[:, None])))[:, :, None, None],
            (grad[:, group.items] * (scale / (2 * group.lengths)))[:, :, None],
        )
        for group in groups
    ]
    tiles = _Tiles(x)
    to_ys = [_Cells(x.new_zeros(heads, *group.real.shape, size)) for group in groups]
    # Of the gradient to the products, what comes by way of the numerators has no part in scale.
    # In float64, as it is what is left of two sums.
    along = -(grad.double() * scores.double()).sum()
    for i, one in _ones(x, x_lengths, scale):
        to_products, to_values = x.new_zeros(2, *one.values.shape)
        for group, (by_y, by_x), to_y, one_table in zip(
            groups, shares, to_ys, shared[i], strict=True
        ):
            tile = tiles.take(group, one)
            tile.attend(group, one, one_table)
            by_x = (by_x[i] * group.real).view(1, 1, -1)
            tile.over_y.differentiate(one.queries, by_y[i] * one.real, times)
            tile.over_x.differentiate(group.queries, by_x, times)
            tile.add_gradients(group, one, to_products, to_values, to_y, times)
        along += (to_products.double() * one.values.double()).sum()
        to_x = to_products.add_(to_values, alpha=1 / times).mT
        torch.mul(to_x[:, : one.steps], largest, out=grad_x[i, :, : one.steps])
    del tiles
    grad_y = torch.empty_like(y)
    while groups:  # one's memory is given back before the next one's is needed
        group, cells = groups.pop(), to_ys.pop().cells
        grad_y[group.items, :, : cells.shape[2]] = cells.mul_(largest).transpose(0, 1)
        grad_y[group.items, :, cells.shape[2] :] = 0.0
    return grad_x, grad_y, (along * largest / scale).to(scale.dtype)


@attention_scores.register_fake
def _(x: Tensor, y: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])


@attention_scores_backward.register_fake
def _(
    grad: Tensor,
    scores: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y), torch.empty_like(scale)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    with torch.autocast(grad.device.type, enabled=False):  # of whoever calls backward
        grad_x, grad_y, grad_scale = attention_scores_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_y, None, None, grad_scale


attention_scores.register_autograd(_differentiate, setup_context=_save)


@attrs.frozen(eq=False)
class _One:
    """One x, T padded to a multiple of `_WIDTH`."""

    steps: int  # real ones
    logits: Float[Tensor, "H f T"]  # d + 2 rows: 1; exponents of 2; 0 or, in padding, _NEVER
    ones: Float[Tensor, "H e T"]  # d + 1 rows: values, then 1
    values: Float[Tensor, "H d T"]
    queries: Float[Tensor, "H 1 d T"]  # the same
    real: Float[Tensor, " T"]  # 1 or, in padding, 0
    padded: bool  # whether there is padding


def _ones(x: Tensor, lengths: Tensor, scale: Tensor) -> Iterator[tuple[int, _One]]:
    """Every x and its number: the longest makes the room, and of like lengths use the same views.

    Some of one width are made at once, as there are many small things to do.
    """
    order = lengths.argsort(descending=True, stable=True)
    widths = (-(-lengths[order] // _WIDTH) * _WIDTH).tolist()
    first = 0
    while first < len(widths):
        width = widths[first]
        most = max(1, _most_cells(x) // (2 * x[0, :, 0].numel() * width))
        count = widths[first : first + most].count(width)
        items = order[first : first + count]
        first += count
        some = x[items, :, :width]
        ones = pad(some.mT, (0, width - some.shape[2], 0, 1))
        ones[:, :, -1] = 1.0
        values = ones[:, :, :-1]
        logits = pad(values * (scale / math.log(2)), (0, 0, 1, 1), value=1.0)
        real = torch.arange(width, device=x.device) < lengths[items, None]
        logits[:, :, -1] = torch.where(real, 0.0, _NEVER)[:, None]
        real = real.to(x.dtype)
        for k, (i, steps) in enumerate(zip(items.tolist(), lengths[items].tolist(), strict=True)):
            each = logits[k], ones[k], values[k], values[k, :, None], real[k]
            yield i, _One(steps, *each, steps < width)


@attrs.frozen(eq=False)
class _Group:
    """Several y of like lengths, cut to the longest of them."""

    logits: Float[Tensor, "H f N"]  # N = c·L; d + 2 rows: 0 or, in padding, _NEVER; values; 1
    ones: Float[Tensor, "K e L"]  # K = H·c; d + 1 rows: values, then 1
    values: Float[Tensor, "H d N"]
    queries: Float[Tensor, "H 1 d N"]  # the same
    real: Float[Tensor, "c L"]  # 1 or, in padding, 0
    padded: bool  # whether there is padding
    lengths: Int[Tensor, " c"]
    items: Int[Tensor, " c"]  # where in the batch they are

    @classmethod
    def made(cls, y: Tensor, lengths: Tensor, items: Tensor) -> "_Group":
        steps = int(lengths.max())
        values = y[items, :, :steps].transpose(0, 1)  # (H, c, L, d)
        real = torch.arange(steps, device=y.device) < lengths[:, None]
        logits = pad(values.permute(0, 3, 1, 2).flatten(2), (0, 0, 1, 1), value=1.0)
        logits[:, 0] = torch.where(real, 0.0, _NEVER).flatten()
        ones = pad(values.mT.flatten(0, 1), (0, 0, 0, 1), value=1.0)
        flat = logits[:, 1:-1]
        padded = bool((lengths < steps).any())
        real = real.to(y.dtype)
        return cls(logits, ones, flat, flat[:, None], real, padded, lengths, items)


class _Cells:
    """A tensor (H, c, L, n) as one matrix a head, and as one a pair."""

    def __init__(self, cells: Tensor) -> None:
        self.cells = cells
        self.tall = cells.flatten(1, 2)  # (H, c·L, n)
        self.pairs = cells.flatten(0, 1)  # (H·c, L, n)


class _Direction:
    """One direction of a tile: what each of n·Q queries attends to.

    Over y, n is c and Q is T; over x, n is 1 and Q is c·L.
    """

    def __init__(self, name: str, room: Room, heads: int, n: int, size: int, q: int) -> None:
        self.rows = room.take(f"means over {name}", heads, n, size + 1, q)
        self.means, self._common = self.rows[:, :, :-1], self.rows[:, :, -1:]
        self._each = room.take("spare", heads, n, size, q)
        # No memory of its own: there are as many of these as groups.
        self._inverse_totals = room.take(f"inverse totals over {name}", heads, n, 1, q)
        self._to_queries = room.take(f"gradients to queries of {name}", heads, n, 1, q)

    def divide(self, padded: bool) -> None:
        """Turn what `rows` holds, the sums of the keys by their weights and of ones, into means."""
        inverse = self._inverse_totals
        if padded:  # such a query may have no weight at all; its cosine is not used
            torch.clamp(self._common, min=torch.finfo(inverse.dtype).tiny, out=inverse)
            inverse.reciprocal_()
        else:
            torch.reciprocal(self._common, out=inverse)
        self.means.mul_(self._inverse_totals)

    def _products(
        self, queries: Float[Tensor, "H #n d Q"]
    ) -> tuple[Float[Tensor, "H n 1 Q"], Float[Tensor, "H n 1 Q"]]:
        """Head by head, ⟨q, a⟩ and ⟨a, a⟩ for a query q and what it attends to."""
        along = torch.mul(self.means, queries, out=self._each).sum(2, keepdim=True)
        squares = torch.mul(self.means, self.means, out=self._each).sum(2, keepdim=True)
        return along, squares

    def cosines(self, queries: Float[Tensor, "H #n d Q"]) -> Float[Tensor, "n 1 Q"]:
        """Between each query, a unit vector or zero, and what it attends to."""
        along, squares = self._products(queries)
        return along.sum(0).mul_(_or_infinite(squares.sum(0)).rsqrt_())

    def differentiate(
        self, queries: Float[Tensor, "H #n d Q"], grad: Float[Tensor, "n 1 Q"], scale: float
    ) -> None:
        """Of the cosines, to which `grad` is `scale` times the gradient.

        From now on `means` is `scale` times the gradient to the sum of the keys by their weights,
        but only that by way of its norm.
        """
        along, squares = self._products(queries)
        inverse = _or_infinite(squares.sum(0)).reciprocal_()
        # The gradient to what was attended to, over all heads: to_query·q + to_itself·a.
        to_query = inverse.sqrt().mul_(grad)
        to_itself = along.sum(0).mul_(to_query).mul_(inverse).neg_()
        # In common to the products of a query: by way of the total, as a mean is a sum over its
        # total (that part is -⟨gradient, mean⟩), and by way of the numerator.
        along.sub_(1 / scale).mul_(to_query).addcmul_(squares, to_itself).neg_()
        torch.mul(along, self._inverse_totals, out=self._common)
        self.means.mul_(self._inverse_totals * to_itself)
        torch.mul(self._inverse_totals, to_query, out=self._to_queries)

    def complete(self, queries: Float[Tensor, "H #n d Q"]) -> None:
        """Add the gradient by way of the numerator.

        From now on `rows` is `scale` times the whole gradient to the sum, and then what those to
        all products with the query have in common.
        """
        self.means.addcmul_(queries, self._to_queries)


class _Tile:
    """Room for one tile, and every view of it that is multiplied, made once for a shape."""

    def __init__(self, group: _Group, one: _One, room: Room) -> None:
        heads, size, steps = one.values.shape
        count, length = group.real.shape
        self._room, self._shape = room, (heads, count, length, steps)
        self.over_y = _Direction("y", room, heads, count, size, steps)
        self.over_x = _Direction("x", room, heads, 1, size, count * length)
        self._rows_y, self._rows_x = self.over_y.rows.flatten(0, 1), self.over_x.rows[:, 0]
        self._means_y, self._means_x = self._rows_y[:, :-1], self._rows_x[:, :-1]
        self._weights = _Cells(room.take("weights", *self._shape))
        self._gradient = _Cells(room.take("spare", *self._shape))
        self._other = self._weights  # the weights over y, if not those over x

    def attend(self, group: _Group, one: _One, shared: bool) -> None:
        """Every step of x over each y, and every step of y over x."""
        over_x = self._weights
        torch.bmm(group.logits.mT, one.logits, out=over_x.tall)
        if shared:
            over_y = over_x
        else:
            over_y = _Cells(self._room.take("weights over y", *self._shape))
            torch.sub(over_x.cells, over_x.cells.amax(2, keepdim=True), out=over_y.cells).exp2_()
            over_x.cells.sub_(over_x.cells.amax(3, keepdim=True))
        over_x.cells.exp2_()
        torch.bmm(group.ones, over_y.pairs, out=self._rows_y)
        torch.bmm(one.ones, over_x.tall.mT, out=self._rows_x)
        self.over_y.divide(one.padded)
        self.over_x.divide(group.padded)
        self._other = over_y

    def add_gradients(
        self,
        group: _Group,
        one: _One,
        to_products: Float[Tensor, "H d T"],
        to_values: Float[Tensor, "H d T"],
        to_y: _Cells,
        scale: float,
    ) -> None:
        """Add the gradients to x by way of the products, and `scale` times the other; that to y.

        After both directions' `differentiate`.
        """
        over_x, over_y, gradient = self._weights, self._other, self._gradient
        # Of the norms of what was attended to.
        to_values.baddbmm_(self._means_x, over_x.tall)
        to_y.pairs.baddbmm_(over_y.pairs, self._means_y.mT, alpha=1 / scale)
        self.over_y.complete(one.queries)
        self.over_x.complete(group.queries)
        # Of the weights and numerators, all by way of the products.
        torch.bmm(self._rows_x.mT, one.ones, out=gradient.tall)
        if over_y is over_x:
            gradient.pairs.baddbmm_(group.ones.mT, self._rows_y)
            gradient.cells.mul_(over_x.cells)
        else:
            other = torch.bmm(group.ones.mT, self._rows_y).view(self._shape)
            gradient.cells.mul_(over_x.cells).addcmul_(other, over_y.cells)
        to_products.baddbmm_(group.values, gradient.tall)
        to_y.tall.baddbmm_(gradient.tall, one.values.mT)


class _Tiles:
    """The tiles, one after the other, in the same memory."""

    def __init__(self, like: Tensor) -> None:
        self._room = Room(like)
        self._made: dict[int, _Tile] = {}
        self._width = 0

    def take(self, group: _Group, one: _One) -> _Tile:
        """Room for a tile; what the last one held is lost."""
        if len(one.real) != self._width:  # widths that were do not come again
            self._made.clear()
            self._width = len(one.real)
        if id(group) not in self._made:
            size = self._room.size
            tile = _Tile(group, one, self._room)
            if self._room.size > size:
                self._made.clear()  # they hold what the room has outgrown
            self._made[id(group)] = tile
        return self._made[id(group)]


def _or_infinite(squares: Tensor) -> Tensor:
    # Where the values cancel to rounding, or are all zero, there is no direction.
    return threshold(squares, _NOTHING**2, math.inf, inplace=True)


def _shared(x: Tensor, y: Tensor, groups: list[_Group], scale: Tensor) -> list[list[bool]]:
    """For each x and each group, whether one table of exponentials may serve both directions."""
    longest = torch.linalg.vector_norm(x, dim=3).amax((1, 2))
    others = torch.linalg.vector_norm(y, dim=3).amax((1, 2))
    largest = torch.stack([others[group.items].max() for group in groups])
    return (longest[:, None] * largest * scale <= _LARGEST[y.dtype]).tolist()


def _swapped(x: Tensor, y: Tensor) -> bool:
    """Whether y should be the side that is taken one by one.

    The longer side should, as long rows are quick, unless that makes many small tiles.
    """
    tiles_x, tiles_y = _tiles(x, y), _tiles(y, x)
    if max(tiles_x, tiles_y) > _MANY * min(tiles_x, tiles_y):
        return tiles_y < tiles_x
    return y.shape[2] > x.shape[2]


_MANY = 7
"""Times as many tiles of the longer side, from which on they take longer than short rows do."""


def _tiles(one: Tensor, other: Tensor) -> int:
    """How many tiles there are of each of `one` with several of `other`."""
    return len(one) * -(-len(other) // _pairs_of_a_tile(one, other.shape[2]))


def _pairs_of_a_tile(one: Tensor, length: int) -> int:
    # A tile has its cells and, for each step of x and y, what it attends to.
    return max(1, _most_cells(one) // (one.shape[1] * one.shape[2] * max(length, one.shape[3])))


def _most_cells(like: Tensor) -> int:
    return CELLS if like.device.type == "cpu" else CELLS_ELSEWHERE


def _groups(x: Tensor, y: Tensor, lengths: Tensor) -> list[_Group]:
    # Sorted, so that a tile of short sequences is small, whatever the longest one is.
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    groups, first = [], 0
    while first < len(order):
        items = order[first : first + _pairs_of_a_tile(x, sizes[first])]
        first += len(items)
        groups.append(_Group.made(y, lengths[items], items))
    return groups
