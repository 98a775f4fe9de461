"""The scores of all pairs and their gradient, as an operator.

Both directions share one table of exponentials. Let a head's logits be ``p = s⟨x_t, y_l⟩``, small
enough to be exponentiated without a shift (see `_LARGEST`). Then ``e = exp(p)`` divided by its sum
over l is the attention of one direction, and divided by its sum over t it is the attention of the
other. The products ``e·Y`` are what the steps attend to, up to that divisor, and their products
with the steps are the numerators of the cosines. So one matrix product writes the cells of a tile,
an operation exponentiates them in place (to base 2, which takes torch a third of the time), and
matrix products and sums read them.

A numerator ``⟨x_t, Σ_l a_l y_l⟩`` equals ``Σ_l a_l ⟨x_t, y_l⟩``. At fixed attention, its gradients
to x_t and y_l therefore pass through the product ⟨x_t, y_l⟩, as do those of the logits. So backward
accumulates one gradient to ⟨x_t, y_l⟩, and only the gradient of the norm passes through the
attended values. The gradient to the products is again a matrix product; the part that all keys of a
query have in common is added in it by one more feature, which is 1 in the other factor.

Layout: a tile has one x, from the longer side, and several y of similar lengths. A head of the tile
is one (c·L, T) matrix. All values per step are stored in the same way, features first and steps
innermost, so that operations on them run along long rows. Padding (of y to the longest in the tile,
of x to a width that suits matrix products) is excluded by two more features of the logits' factors:
one side has 1, and the other has 0 for a real step and a number far below zero for padding.
"""

import math
from collections.abc import Iterator

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad, threshold

from clipseq.engine import Operator, Room, group_by_length, scaled

CELLS, CELLS_ELSEWHERE = 2**19, 2**25
"""Largest number of cells (H·T·L·pairs) in a tile. On a CPU they fit into the cache; elsewhere
there are enough of them for the fifty operations of a tile to take longer than launching them. This
bounds the memory, which is four times as many numbers."""

_WIDTH = 8
"""T is padded to a multiple of this: rows of odd lengths make matrix products a third slower."""

_LARGEST = {torch.float32: 40.0, torch.float64: 500.0}
"""Largest logits that are exponentiated without a shift: their sums, products and quotients stay in
range, and weights are not subnormal."""

_DEEPEST = -60.0
"""Base 2 logarithm below which a weight, relative to the largest, is zero. It is less than float32
resolves, and products with weights near the end of the range would be subnormal, with which many
processors compute a hundred times as slowly."""

NOTHING = 1e-6
"""Norm below which what a step attends to has no direction: it is then mere rounding error."""

_NEVER = -1e30
"""Logit of a padded step; finite, so that differences are never NaN."""


def _score(x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, scale: Tensor) -> Tensor:
    if _should_swap(x, y):
        return _score(y, x, y_lengths, x_lengths, scale).T.contiguous()
    groups = _groups(x, y, y_lengths)
    shared = _shared(x, y, groups, scale)
    # The columns of each group, in the order of its items.
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


def _differentiate(
    grad: Tensor,
    scores: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    # Every tile is computed again: only inputs and scores were kept.
    if _should_swap(x, y):
        grad_y, grad_x, grad_scale = _differentiate(
            grad.T, scores.T, y, x, y_lengths, x_lengths, scale
        )
        return grad_x, grad_y, grad_scale
    grad, largest = scaled(grad)
    grad_x, (_, heads, _, size) = torch.zeros_like(x), x.shape
    groups = _groups(x, y, y_lengths)
    shared = _shared(x, y, groups, scale)
    times = float(scale)
    # Gradients to the cosines, times scale.
    shares = [
        (
            (grad[:, group.items] * (scale / (2 * x_lengths[:, None])))[:, :, None, None],
            (grad[:, group.items] * (scale / (2 * group.lengths)))[:, :, None],
        )
        for group in groups
    ]
    tiles = _Tiles(x)
    to_ys = [_Cells(x.new_zeros(heads, *group.real.shape, size)) for group in groups]
    # The part of the gradient to the products that comes from the numerators does not contribute to
    # the gradient to scale. This is the difference of two sums, so each is added up pairwise, as
    # torch's sums are, and not item by item.
    along = x.new_zeros(len(x))
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
        torch.sum(to_products * one.values, dim=(0, 1, 2), out=along[i])
        to_x = to_products.add_(to_values, alpha=1 / times).mT
        torch.mul(to_x[:, : one.steps], largest, out=grad_x[i, :, : one.steps])
    del tiles
    grad_y = torch.empty_like(y)
    while groups:  # frees the memory of one group before the next one needs its own
        group, cells = groups.pop(), to_ys.pop().cells
        grad_y[group.items, :, : cells.shape[2]] = cells.mul_(largest).transpose(0, 1)
        grad_y[group.items, :, cells.shape[2] :] = 0.0
    to_scale = along.sub_((grad * scores).sum(1)).sum()
    return grad_x, grad_y, (to_scale * largest / scale).to(scale.dtype)


attention_scores = Operator(
    "clipseq::attention_scores",
    _score,
    _differentiate,
    gradients=("x", "y", "scale"),
    kernels="clipseq_attention.triton_kernels",
)
"""(B, C) scores of heads x (B, H, T, d) and y (C, H, L, d), both packed to the front.

Products are multiplied by `scale`, a scalar tensor, before the softmax.
"""


@attrs.frozen(eq=False)
class _One:
    """One x, with T padded to a multiple of `_WIDTH`."""

    steps: int  # only the real ones
    logits: Float[Tensor, "H f T"]  # d + 2 rows: 1; exponents of 2; 0 or, in padding, _NEVER
    ones: Float[Tensor, "H e T"]  # d + 1 rows: values, then 1
    values: Float[Tensor, "H d T"]
    queries: Float[Tensor, "H 1 d T"]  # the values again
    real: Float[Tensor, " T"]  # 1 or, in padding, 0
    padded: bool  # True where there is padding


def _ones(x: Tensor, lengths: Tensor, scale: Tensor) -> Iterator[tuple[int, _One]]:
    """Yield the number of every x, and the x itself, from the longest to the shortest.

    The longest x determines the size of the workspace, and all x of one width use the same views of
    it. Several x of one width are prepared at once, because each takes many small operations.
    """
    most = _most_cells(x) // (2 * x[0, :, 0].numel())
    for items, some_lengths in group_by_length(
        lengths, lambda width: max(1, most // width), multiple=_WIDTH
    ):
        width = -(-some_lengths[0] // _WIDTH) * _WIDTH
        some = x[items, :, :width]
        ones = pad(some.mT, (0, width - some.shape[2], 0, 1))
        ones[:, :, -1] = 1.0
        values = ones[:, :, :-1]
        logits = pad(values * (scale / math.log(2)), (0, 0, 1, 1), value=1.0)
        real = torch.arange(width, device=x.device) < lengths[items, None]
        logits[:, :, -1] = torch.where(real, 0.0, _NEVER)[:, None]
        real = real.to(x.dtype)
        for k, (i, steps) in enumerate(zip(items.tolist(), some_lengths, strict=True)):
            each = logits[k], ones[k], values[k], values[k, :, None], real[k]
            yield i, _One(steps, *each, steps < width)


@attrs.frozen(eq=False)
class _Group:
    """Several y of similar lengths, cut to the longest of them."""

    logits: Float[Tensor, "H f N"]  # N = c·L; d + 2 rows: 0 or, in padding, _NEVER; values; 1
    ones: Float[Tensor, "K e L"]  # K = H·c; d + 1 rows: values, then 1
    values: Float[Tensor, "H d N"]
    queries: Float[Tensor, "H 1 d N"]  # the values again
    real: Float[Tensor, "c L"]  # 1 or, in padding, 0
    padded: bool  # True where there is padding
    lengths: Int[Tensor, " c"]
    items: Int[Tensor, " c"]  # positions in the batch

    @classmethod
    def make(cls, y: Tensor, lengths: Tensor, items: Tensor, steps: int) -> "_Group":
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
    """A tensor (H, c, L, n), with views as one matrix per head and one matrix per pair."""

    def __init__(self, cells: Tensor) -> None:
        self.cells = cells
        self.tall = cells.flatten(1, 2)  # (H, c·L, n)
        self.pairs = cells.flatten(0, 1)  # (H·c, L, n)


class _Direction:
    """One direction of a tile: what each of its n·Q queries attends to.

    Over y, n is c and Q is T; over x, n is 1 and Q is c·L.
    """

    def __init__(self, name: str, room: Room, heads: int, n: int, size: int, q: int) -> None:
        self.rows = room.take(f"means over {name}", heads, n, size + 1, q)
        self.means, self._common = self.rows[:, :, :-1], self.rows[:, :, -1:]
        self._each = room.take("spare", heads, n, size, q)
        # The directions of all groups share this memory.
        self._inverse_totals = room.take(f"inverse totals over {name}", heads, n, 1, q)
        self._to_queries = room.take(f"gradients to queries of {name}", heads, n, 1, q)

    def divide(self, padded: bool) -> None:
        """Turn the weighted sums in `rows` (of the keys and of ones) into means."""
        inverse = self._inverse_totals
        if padded:  # a padded query may have no weight at all; its cosine is not used
            torch.clamp(self._common, min=torch.finfo(inverse.dtype).tiny, out=inverse)
            inverse.reciprocal_()
        else:
            torch.reciprocal(self._common, out=inverse)
        self.means.mul_(self._inverse_totals)

    def _products(
        self, queries: Float[Tensor, "H #n d Q"]
    ) -> tuple[Float[Tensor, "H n 1 Q"], Float[Tensor, "H n 1 Q"]]:
        """Return ⟨q, a⟩ and ⟨a, a⟩, head by head, for a query q and the mean a it attends to."""
        along = torch.mul(self.means, queries, out=self._each).sum(2, keepdim=True)
        squares = torch.mul(self.means, self.means, out=self._each).sum(2, keepdim=True)
        return along, squares

    def cosines(self, queries: Float[Tensor, "H #n d Q"]) -> Float[Tensor, "n 1 Q"]:
        """Return the cosine of each query, a unit vector or zero, and what it attends to."""
        along, squares = self._products(queries)
        return along.sum(0).mul_(_or_infinite(squares.sum(0)).rsqrt_())

    def differentiate(
        self, queries: Float[Tensor, "H #n d Q"], grad: Float[Tensor, "n 1 Q"], scale: float
    ) -> None:
        """Differentiate the cosines; `grad` is `scale` times the gradient to them.

        Afterwards `means` holds `scale` times the gradient to the weighted sum of the keys, but
        only the part that comes from its norm.
        """
        along, squares = self._products(queries)
        inverse = _or_infinite(squares.sum(0)).reciprocal_()
        # The gradient to a, over all heads, is to_query·q + to_itself·a.
        to_query = inverse.sqrt().mul_(grad)
        to_itself = along.sum(0).mul_(to_query).mul_(inverse).neg_()
        # Two parts are the same for all products of a query: the part from the total, since a mean
        # is a sum divided by its total (it is -⟨gradient, mean⟩), and the part from the numerator.
        along.sub_(1 / scale).mul_(to_query).addcmul_(squares, to_itself).neg_()
        torch.mul(along, self._inverse_totals, out=self._common)
        self.means.mul_(self._inverse_totals * to_itself)
        torch.mul(self._inverse_totals, to_query, out=self._to_queries)

    def complete(self, queries: Float[Tensor, "H #n d Q"]) -> None:
        """Add the part of the gradient that comes from the numerator.

        Afterwards `rows` holds `scale` times the whole gradient to the sum, and then the part that
        the gradients to all products with the query have in common.
        """
        self.means.addcmul_(queries, self._to_queries)


class _Tile:
    """Memory for one tile, and every view of it that matrix products use, made once per shape."""

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
        self._other = self._weights  # the weights over y, where they differ from those over x

    def attend(self, group: _Group, one: _One, shared: bool) -> None:
        """Let every step of x attend over each y, and every step of y over x."""
        over_x = self._weights
        torch.bmm(group.logits.mT, one.logits, out=over_x.tall)
        if shared:
            over_y = over_x
        else:
            over_y = _Cells(self._room.take("weights over y", *self._shape))
            torch.sub(over_x.cells, over_x.cells.amax(2, keepdim=True), out=over_y.cells)
            threshold(over_y.cells, _DEEPEST, -math.inf, inplace=True).exp2_()
            over_x.cells.sub_(over_x.cells.amax(3, keepdim=True))
            threshold(over_x.cells, _DEEPEST, -math.inf, inplace=True)
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
        """Add the gradients of a tile, after `differentiate` of both directions.

        `to_products` receives the gradient to x that comes through the products, `to_values`
        receives `scale` times the rest of it, and `to_y` receives the gradient to y.
        """
        over_x, over_y, gradient = self._weights, self._other, self._gradient
        # First the part that comes through the norms of what the steps attended to.
        to_values.baddbmm_(self._means_x, over_x.tall)
        to_y.pairs.baddbmm_(over_y.pairs, self._means_y.mT, alpha=1 / scale)
        self.over_y.complete(one.queries)
        self.over_x.complete(group.queries)
        # Then the part that comes through the weights and numerators, and so through the products.
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
    """Tiles that use the same memory, one after the other."""

    def __init__(self, like: Tensor) -> None:
        self._room = Room(like)
        self._made: dict[int, _Tile] = {}
        self._width = 0

    def take(self, group: _Group, one: _One) -> _Tile:
        """Return a tile with undefined content; the previous tile's is lost."""
        if len(one.real) != self._width:  # earlier widths do not recur
            self._made.clear()
            self._width = len(one.real)
        if id(group) not in self._made:
            size = self._room.size
            tile = _Tile(group, one, self._room)
            if self._room.size > size:
                self._made.clear()  # they hold memory that the room has replaced
            self._made[id(group)] = tile
        return self._made[id(group)]


def _or_infinite(squares: Tensor) -> Tensor:
    # If the values cancel up to rounding, or are all zero, their mean has no direction.
    return threshold(squares, NOTHING**2, math.inf, inplace=True)


def _shared(x: Tensor, y: Tensor, groups: list[_Group], scale: Tensor) -> list[list[bool]]:
    """Return, for each x and group, True if one table of exponentials may serve both directions."""
    longest = torch.linalg.vector_norm(x, dim=3).amax((1, 2))
    others = torch.linalg.vector_norm(y, dim=3).amax((1, 2))
    largest = torch.stack([others[group.items].max() for group in groups])
    return (longest[:, None] * largest * scale <= _LARGEST[y.dtype]).tolist()


def _should_swap(x: Tensor, y: Tensor) -> bool:
    """Return True if y should be the side that is taken one by one.

    That is the longer side, since long rows are fast, unless it makes many small tiles.
    """
    tiles_x, tiles_y = _count_tiles(x, y), _count_tiles(y, x)
    if max(tiles_x, tiles_y) > _MANY * min(tiles_x, tiles_y):
        return tiles_y < tiles_x
    return y.shape[2] > x.shape[2]


_MANY = 7
"""Ratio of the two tile counts above which many small tiles cost more than short rows."""


def _count_tiles(one: Tensor, other: Tensor) -> int:
    """Return the number of tiles of each of `one` with several of `other`."""
    return len(one) * -(-len(other) // _pairs_of_a_tile(one, other.shape[2]))


def _pairs_of_a_tile(one: Tensor, length: int) -> int:
    # A tile holds its cells and, for each step of x and y, what that step attends to.
    return max(1, _most_cells(one) // (one.shape[1] * one.shape[2] * max(length, one.shape[3])))


def _most_cells(like: Tensor) -> int:
    return CELLS if like.device.type == "cpu" else CELLS_ELSEWHERE


def _groups(x: Tensor, y: Tensor, lengths: Tensor) -> list[_Group]:
    groups = group_by_length(lengths, lambda steps: _pairs_of_a_tile(x, steps))
    return [_Group.make(y, lengths[group.items], group.items, group.steps) for group in groups]
