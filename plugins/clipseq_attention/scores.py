"""The scores of all pairs and their gradient, as operators that torch.compile takes whole.

Both directions share one table of exponentials. With a head's logits ``p = s⟨x_t, y_l⟩``, as long
as they may be exponentiated as they are (see `_LARGEST`), ``e = exp(p)`` divided by its sum over l
is the attention of one direction, and over t that of the other. The products ``e·Y`` are what the
steps attended to, but for that divisor, and their products with the steps are the numerators of
the cosines. So the cells of a tile are written by one matrix product, exponentiated in place (to
base 2, a third of the time in torch), and read by matrix products and sums.

Layout: one y against several x of like lengths. Heads come first, then x: a head of the tile is
one (b·T, L) matrix, without padding along L. Padded t are left out by one more feature, 1 in y, 0
in a real step of x and far below zero in a padded one.
"""

import math
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

CELLS = 2**19
"""Most cells (H·T·L·pairs) of a tile: what fits the cache, and bounds the memory."""

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
    if len(x) < len(y):  # few tiles of many pairs rather than many of few
        return attention_scores(y, x, y_lengths, x_lengths, scale).T.contiguous()
    scores = x.new_empty(len(x), len(y))
    columns, room = list(_columns(y, y_lengths)), _Room(x)
    for rows in _tiles(x, x_lengths, y_lengths, scale):
        shared = _may_share(rows, y, scale)
        for j, column in enumerate(columns):
            over_y, over_x = _attend(rows, column, shared[j], room)
            means = over_y.cosines(room).mul_(rows.real).sum(1) / rows.lengths
            scores[rows.items, j] = (means + over_x.cosines(room).mean(1)) / 2
    return scores


@torch.library.custom_op("clipseq::attention_scores_backward", mutates_args=())
def attention_scores_backward(
    grad: Tensor, x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, y and scale, every tile computed again: only the inputs were kept."""
    if len(x) < len(y):
        grad_y, grad_x, grad_scale = attention_scores_backward(
            grad.T, y, x, y_lengths, x_lengths, scale
        )
        return grad_x, grad_y, grad_scale
    grad_x, grad_y, grad_scale = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(scale)
    columns, room, times = list(_columns(y, y_lengths)), _Room(x), float(scale)
    for rows in _tiles(x, x_lengths, y_lengths, scale):
        shared = _may_share(rows, y, scale)
        shares_y = grad[rows.items] / (2 * rows.lengths[:, None])
        shares_x = grad[rows.items] / (2 * y_lengths)
        # By way of the logits, which scale too has a part in, and by all other ways.
        steps, size = rows.values.shape[2:]
        to_logits, to_rest = torch.zeros_like(rows.values), torch.zeros_like(rows.values)
        for j, column in enumerate(columns):
            over_y, over_x = _attend(rows, column, shared[j], room)
            queries_y, sums_y = over_y.differentiate(rows.real * shares_y[:, j, None], room)
            queries_x, sums_x = over_x.differentiate(shares_x[:, j, None], room)
            logits = _logits_gradient(
                rows, column, over_y.weights, over_x.weights, sums_y, sums_x, room
            )
            _tall(to_logits).baddbmm_(_tall(logits), column.values)
            to_rest.addcmul_(over_y.means, queries_y)
            _pairs(to_rest).baddbmm_(_pairs(over_x.weights), _pairs(sums_x)[..., :size])
            here = torch.mul(over_x.means, queries_x, out=over_x.means).sum(1)
            here.baddbmm_(_tall(over_y.weights).mT, _tall(sums_y)[..., :size])
            here.baddbmm_(_tall(logits).mT, _tall(rows.values), alpha=times)
            grad_y[j, :, : column.steps] += here
        grad_scale += (to_logits * rows.values).sum()
        grad_x[rows.items, :, :steps] = to_rest.add_(to_logits.mul_(scale)).transpose(0, 1)
    return grad_x, grad_y, grad_scale


@attention_scores.register_fake
def _(x: Tensor, y: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])


@attention_scores_backward.register_fake
def _(
    grad: Tensor, x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y), torch.empty_like(scale)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_y, grad_scale = attention_scores_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_y, None, None, grad_scale


attention_scores.register_autograd(_differentiate, setup_context=_save)


@attrs.frozen(eq=False)
class _Rows:
    """Several x of like lengths, cut to the longest of them."""

    values: Tensor  # (H, b, T, d)
    logits: Tensor  # (H, b, T, d + 1): exponents of 2, and then 0 or, in a padded step, _NEVER
    ones: Tensor  # (H, b, T, d + 1): and then 1
    real: Tensor  # (b, T): 1 or, in a padded step, 0
    lengths: Tensor  # (b,)
    items: Tensor  # where in the batch they are


@attrs.frozen(eq=False)
class _Column:
    """One y."""

    ones: Tensor  # (H, L, d + 1): and then 1
    values: Tensor  # (H, L, d)

    @property
    def steps(self) -> int:
        return self.values.shape[1]


class _Room:
    """Memory that every tile uses again: touching fresh pages costs more than the work on them."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; the last one of that name is lost."""
        size = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)


@attrs.frozen(eq=False)
class _Attended:
    """One direction of a tile: what each of b·Q queries attended to."""

    name: str
    queries: Tensor  # (H, b or 1, Q, d)
    weights: Tensor  # (H, b, T, L), not normalised
    totals: Tensor  # (H, b, Q), the sum of a query's weights
    means: Tensor  # (H, b, Q, d), of the keys by those weights

    def _products(self, room: _Room) -> tuple[Tensor, Tensor, Tensor]:
        """Head by head, ⟨q, a⟩ and ⟨a, a⟩ for a query q and what it attended to; 1/||a||."""
        each = room.take("each", *self.means.shape)
        along = torch.mul(self.queries, self.means, out=each).sum(3)
        squares = torch.linalg.vector_norm(self.means, dim=3).square_()
        squared = squares.sum(0)
        # Where the values cancel to rounding, or are all zero, there is no direction.
        nothing = squared <= _NOTHING**2
        return along, squares, squared.masked_fill_(nothing, torch.inf).rsqrt_()

    def cosines(self, room: _Room) -> Float[Tensor, "b Q"]:
        """Between each query, a unit vector or zero, and what it attended to."""
        along, _, inverse = self._products(room)
        return along.sum(0).mul_(inverse)

    def differentiate(self, grad: Float[Tensor, "b Q"], room: _Room) -> tuple[Tensor, Tensor]:
        """Of the cosines times `grad`: the gradients to the queries and to the sums.

        The first is a factor (b, Q, 1) of `means`, the second (H, b, Q, d + 1): to the sum of the
        keys by their weights, and to that of ones.
        """
        along, squares, inverse = self._products(room)
        # The gradient to what was attended to, over all heads: to_query·q - to_itself·a.
        to_query = grad * inverse
        to_itself = to_query * along.sum(0) * inverse.square()
        size = self.means.shape[3]
        to_sums = room.take(f"sums of {self.name}", *self.means.shape[:3], size + 1)
        # A mean is a sum over its total: the total's part is -⟨gradient, mean⟩.
        to_totals = squares.mul_(to_itself).addcmul_(along, to_query, value=-1)
        to_sums[..., size] = to_totals.div_(self.totals)
        values = to_sums[..., :size]
        torch.mul(self.queries, (to_query / self.totals)[..., None], out=values)
        values.addcmul_(self.means, (to_itself / self.totals)[..., None], value=-1)
        return to_query[..., None], to_sums


def _attend(rows: _Rows, column: _Column, shared: bool, room: _Room) -> tuple[_Attended, _Attended]:
    """Every step of x over y, and every step of y over each x."""
    heads, count, steps, size = rows.values.shape
    logits = room.take("weights", heads, count, steps, column.steps)
    torch.bmm(_tall(rows.logits), column.ones.mT, out=_tall(logits))
    if shared:
        over_y = over_x = logits.exp2_()
    else:
        over_y = (logits - logits.amax(3, keepdim=True)).exp2_()
        over_x = logits.sub_(logits.amax(2, keepdim=True)).exp2_()
    # A padded step of x may have no weight at all; its cosine is not used.
    totals_y, totals_x = over_y.sum(3).add_(1 - rows.real), over_x.sum(2)
    means_y = room.take("means over y", heads, count, steps, size)
    torch.bmm(_tall(over_y), column.values, out=_tall(means_y))
    means_x = room.take("means over x", heads, count, column.steps, size)
    torch.bmm(_pairs(over_x).mT, _pairs(rows.values), out=_pairs(means_x))
    return (
        _Attended("y", rows.values, over_y, totals_y, means_y.div_(totals_y[..., None])),
        _Attended("x", column.values[:, None], over_x, totals_x, means_x.div_(totals_x[..., None])),
    )


def _logits_gradient(
    rows: _Rows,
    column: _Column,
    over_y: Float[Tensor, "H b T L"],
    over_x: Float[Tensor, "H b T L"],
    sums_y: Float[Tensor, "H b T e"],
    sums_x: Float[Tensor, "H b L e"],
    room: _Room,
) -> Float[Tensor, "H b T L"]:
    """The gradients to the weights of both directions, from those to their sums; times them."""
    gradient = room.take("gradient", *over_y.shape)
    torch.bmm(_tall(sums_y), column.ones.mT, out=_tall(gradient))
    if over_y is over_x:
        _pairs(gradient).baddbmm_(_pairs(rows.ones), _pairs(sums_x).mT)
        return gradient.mul_(over_y)
    other = torch.bmm(_pairs(rows.ones), _pairs(sums_x).mT).view(over_x.shape)
    return gradient.mul_(over_y).addcmul_(other, over_x)


def _tall(values: Tensor) -> Tensor:
    """(H, b, T, n) as (H, b·T, n)."""
    return values.flatten(1, 2)


def _pairs(values: Tensor) -> Tensor:
    """(H, b, T, n) as (H·b, T, n)."""
    return values.flatten(0, 1)


def _may_share(rows: _Rows, y: Tensor, scale: Tensor) -> list[bool]:
    """For each y, whether one table of exponentials may serve both directions."""
    longest = torch.linalg.vector_norm(rows.values, dim=3).amax((1, 2))
    others = torch.linalg.vector_norm(y, dim=3).amax(2)
    return ((longest * others).amax(1) * scale <= _LARGEST[y.dtype]).tolist()


def _columns(y: Tensor, lengths: Tensor) -> Iterator[_Column]:
    for one, steps in zip(y, lengths.tolist(), strict=True):
        ones = torch.nn.functional.pad(one[:, :steps], (0, 1), value=1.0)
        yield _Column(ones, one[:, :steps].contiguous())


def _tiles(x: Tensor, x_lengths: Tensor, y_lengths: Tensor, scale: Tensor) -> Iterator[_Rows]:
    # Sorted, so that a tile of short sequences is small, whatever the longest one is.
    order = x_lengths.argsort(descending=True)
    steps_of = x_lengths[order].tolist()
    across = x.shape[1] * int(y_lengths.max())
    first = 0
    while first < len(order):
        steps = steps_of[first]
        items = order[first : first + max(1, CELLS // (across * steps))]
        first += len(items)
        values = x[items, :, :steps].transpose(0, 1).contiguous()
        lengths = x_lengths[items]
        real = torch.arange(steps, device=x.device) < lengths[:, None]
        ones = torch.nn.functional.pad(values, (0, 1), value=1.0)
        logits = ones * (scale / math.log(2))
        logits[..., -1] = torch.where(real, 0.0, _NEVER)
        yield _Rows(values, logits, ones, real.to(x.dtype), lengths, items)
