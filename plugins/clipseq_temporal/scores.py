"""The scores of all pairs and their gradient, as operators that torch.compile takes whole."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from clipseq import in_threads
from clipseq.kernels import use_kernels
from clipseq_temporal import ratios
from clipseq_temporal.recursion import (
    GROWTH,
    NEVER,
    backward,
    band_mask,
    forward,
    log_paths,
    strips,
)

NUMBERS = 11 * 2**20
"""Most numbers that a tile and thread hold at once: what bounds the memory."""

DIAGONAL = 2**15
"""Cells of all of a tile's lanes on a long anti-diagonal: enough for an operation to be mostly
work, few enough for what an anti-diagonal needs to stay in a core's own cache."""

ROWS = 32
"""Most x of a tile."""


@torch.library.custom_op("clipseq::temporal_scores", mutates_args=())
def temporal_scores(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, gamma: float, band: float | None
) -> Tensor:
    """(B, C) scores of unit steps x (B, T, D) and y (C, L, D), both packed to the front."""
    if use_kernels(x):
        from clipseq_temporal import triton_kernels

        if triton_kernels.supported(x, y):
            return triton_kernels.forward(x, y, x_lengths, y_lengths, gamma, band)
    scores = x.new_empty(len(x), len(y))
    counts = _log_paths_table(x_lengths, y_lengths, band)
    rooms = _Rooms(x)

    def score(cut: _Cut) -> bool:
        tile = _Tile(cut, band, in_ratios)
        with rooms.borrowed() as room:
            weight = tile.weight(gamma, room)
        # 1 - (softDTW(-s) + t + l + γ log N) / (t + l); λ(t + l) cancels between the two.
        paths = counts[cut.rows][:, cut.columns].to(x.dtype)
        mean = weight.view(paths.T.shape).T - paths
        lengths = cut.x_lengths[:, None] + cut.y_lengths
        scores[cut.rows[:, None], cut.columns] = gamma * math.log(2) * mean / lengths
        return tile.in_ratios

    in_ratios = _ratios_fit(gamma, band, x.dtype)
    for cuts in _cuts(x, y, x_lengths, y_lengths, gamma, band):
        # Where ratios did not do, they rarely do for the next; tiles at once do not ask each other.
        in_ratios = all(_side_by_side(score, cuts))
    return scores


@torch.library.custom_op("clipseq::temporal_scores_backward", mutates_args=())
def temporal_scores_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    gamma: float,
    band: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradients to x and y, every tile computed again: only the inputs were kept."""
    if use_kernels(x):
        from clipseq_temporal import triton_kernels

        if triton_kernels.supported(x, y):
            return triton_kernels.backward(grad, x, y, x_lengths, y_lengths, gamma, band)
    grad = grad / (x_lengths[:, None] + y_lengths)
    # What follows is linear in it, and need not expect numbers of any size.
    largest = grad.abs().amax()
    largest = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    grad = grad / largest
    rooms = _Rooms(x)
    # Of each group of x, step-major; no two tiles that are computed at once write to the same.
    to_x: dict[int, tuple[Tensor, Tensor]] = {}

    def differentiate(cut: _Cut) -> tuple[Tensor, bool]:
        tile = _Tile(cut, band, in_ratios)
        to_y = cut.y.new_zeros(cut.y.shape)
        lanes = grad[cut.rows[:, None], cut.columns].T.reshape(-1)
        with rooms.borrowed() as room:
            tile.differentiate(lanes, gamma, to_x[cut.group][1], to_y, room)
        return to_y, tile.in_ratios

    in_ratios = _ratios_fit(gamma, band, x.dtype)
    grad_y = torch.zeros_like(y)
    for cuts in _cuts(x, y, x_lengths, y_lengths, gamma, band):
        for cut in cuts:
            if cut.group not in to_x:
                shape = (cut.steps, len(cut.rows), x.shape[2])
                to_x[cut.group] = (cut.rows, x.new_zeros(shape))
        # In the order of cuts, whichever was done first.
        parts, went = zip(*_side_by_side(differentiate, cuts), strict=True)
        in_ratios = all(went)
        to_y = sum(parts[1:], start=parts[0])
        grad_y[cuts[0].columns, : len(to_y)] = to_y.transpose(0, 1)
    grad_x = torch.zeros_like(x)
    while to_x:
        rows, to_rows = to_x.popitem()[1]
        grad_x[rows, : len(to_rows)] = to_rows.mul_(largest).transpose(0, 1)
    return grad_x, grad_y.mul_(largest)


@temporal_scores.register_fake
def _(x: Tensor, y: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])


@temporal_scores_backward.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.gamma, ctx.band = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_y = temporal_scores_backward(grad, *ctx.saved_tensors, ctx.gamma, ctx.band)
    return grad_x, grad_y, None, None, None, None


temporal_scores.register_autograd(_differentiate, setup_context=_save)


def _log_paths_table(x_lengths: Tensor, y_lengths: Tensor, band: float | None) -> Tensor:
    """(B, C) of `log_paths`, in float64."""
    pairs = torch.cartesian_prod(x_lengths, y_lengths)
    table = log_paths(pairs[:, 0], pairs[:, 1], band)
    return table.view(len(x_lengths), len(y_lengths))


@attrs.frozen(eq=False)
class _Cut:
    """A group of x and a group of y, each of like lengths, and all pairs of them."""

    group: int  # of x
    x: Tensor  # (B, T, D), of which it takes rows and steps
    y: Tensor  # (L, c, D)
    rows: Tensor
    steps: int
    columns: Tensor
    x_lengths: Tensor  # (b,)
    y_lengths: Tensor  # (c,)


def _cuts(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    gamma: float,
    band: float | None,
) -> Iterator[list[_Cut]]:
    """All groups of x, for every group of y in turn."""
    # Sorted, so that a tile of short sequences is small, whatever the longest one is.
    x_order = x_lengths.argsort(descending=True, stable=True)
    y_order = y_lengths.argsort(descending=True, stable=True)
    x_sorted, y_sorted = x_lengths[x_order].tolist(), y_lengths[y_order].tolist()
    groups = list(_groups(x_sorted))
    # A cell's weight and two ratios, or its rate and three shares.
    each = 3 if _ratios_fit(gamma, band, x.dtype) else 4
    column = 0
    while column < len(y_sorted):
        others = y_sorted[column]
        longest = x_lengths.new_tensor([x_sorted[0]]), y_lengths.new_tensor([others])
        shapes = [strip.shape for strip in strips(*longest, band)]
        lanes = min(
            DIAGONAL // max(min(shape) for shape in shapes),
            NUMBERS // (each * sum(rows * columns for rows, columns in shapes)),
        )
        columns = y_order[column : column + max(1, lanes // max(map(len, groups)))]
        column += len(columns)
        y_tile = y[columns, :others].transpose(0, 1).contiguous()
        yield [
            _Cut(
                group=number,
                x=x,
                y=y_tile,
                rows=x_order[group.start : group.stop],
                steps=x_sorted[group.start],
                columns=columns,
                x_lengths=x_lengths[x_order[group.start : group.stop]],
                y_lengths=y_lengths[columns],
            )
            for number, group in enumerate(groups)
        ]


def _groups(lengths: list[int]) -> Iterator[range]:
    """Neighbours in descending lengths; at least two groups where there is enough for two.

    Products are fastest with many x of a tile, and where lengths differ much, few waste less.
    """
    most = min(ROWS, -(-len(lengths) // 2))
    start = 0
    while start < len(lengths):
        stop = min(start + most, len(lengths))
        if lengths[stop - 1] < 0.75 * lengths[start]:
            stop = min(start + -(-most // 2), len(lengths))
        yield range(start, stop)
        start = stop


class _Tile:
    """The cells of all pairs of a cut, strip by strip.

    Lane ``j·b + i`` is the pair of the cut's i-th x and j-th y.

    Attributes:
        in_ratios: whether to compute in `ratios`; False from where that has overflowed.
    """

    def __init__(self, cut: _Cut, band: float | None, in_ratios: bool) -> None:
        self.in_ratios = in_ratios
        self._cut = cut
        self._band = band
        self._strips = strips(cut.x_lengths, cut.y_lengths, band)
        # (T, b, D)
        self._x = torch.stack([cut.x[row, : cut.steps] for row in cut.rows.tolist()], dim=1)
        b, c = len(cut.rows), len(cut.columns)
        x_of = torch.arange(b, device=cut.x.device).repeat(c)
        y_of = torch.arange(c, device=cut.x.device).repeat_interleave(b)
        self._t = cut.x_lengths[x_of]
        self._l = cut.y_lengths[y_of]
        self._lanes = [strip.of_lanes(x_of, y_of) for strip in self._strips]
        # Then one lane's band is every lane's.
        self._alike = band is not None and all(
            bool((side == side[0]).all()) for side in (cut.x_lengths, cut.y_lengths)
        )

    def weight(self, gamma: float, room: "_Room") -> Tensor:
        """Log2 of the total weight of each lane's paths."""
        if self.in_ratios:
            weights = self._rates(0, gamma, room.take("field", *self._shape())).exp2_()
            result = ratios.forward(weights, self._t, self._l)
            self.in_ratios = bool(result.isfinite().all())
            if self.in_ratios:
                return result
        return forward(self._lanes, lambda k: self._field(k, gamma, room), self._l)

    def differentiate(
        self, grad: Tensor, gamma: float, to_x: Tensor, to_y: Tensor, room: "_Room"
    ) -> None:
        """Add the gradient of ``grad · weight`` to the cosines, times that of these, to both.

        γ·log 2 times the weight is the score, and rates are cosines over γ·log 2: they cancel.
        to_x is (T, b, D), to_y (L, c, D) and zero. `grad` is at most 1.
        """
        if self.in_ratios:
            self.in_ratios = self._differentiate_ratios(grad, gamma, to_x, to_y, room)
            if self.in_ratios:
                return
        to_y.zero_()
        sizes = [3 * strip.shape[0] * strip.shape[1] * len(self._l) for strip in self._strips]
        shares = list(room.take("kept", sum(sizes)).split(sizes))
        forward(self._lanes, lambda k: self._field(k, gamma, room), self._l, shares)
        found = backward(grad, self._lanes, lambda k: self._room_for(k, room), self._l, shares)
        for k, alignment in found:
            self._add_products(k, alignment, to_x, to_y)

    def _differentiate_ratios(
        self, grad: Tensor, gamma: float, to_x: Tensor, to_y: Tensor, room: "_Room"
    ) -> bool:
        """`differentiate`, and whether a ratio was too large for it; to_x is as it was then."""
        weights = self._rates(0, gamma, room.take("field", *self._shape())).exp2_()
        across, down = room.take("kept", 2, *self._shape())
        result = ratios.forward(weights, self._t, self._l, (across, down))
        if not bool(result.isfinite().all()):
            return False
        grad = grad * ratios.SCALE
        alignment = ratios.backward(grad, weights, (across, down), self._t, self._l)
        cells = alignment.view(len(self._x), -1, self._x.shape[1])
        to_y.flatten(0, 1).addbmm_(cells, self._x, alpha=1 / ratios.SCALE)
        # What is not finite anywhere in the alignment is not finite here.
        if not bool(to_y.isfinite().all()):
            return False
        y = self._cut.y.flatten(0, 1).expand(len(cells), -1, -1)
        to_x.baddbmm_(cells.mT, y, alpha=1 / ratios.SCALE)
        return True

    def _shape(self) -> tuple[int, int, int]:
        return len(self._x), len(self._cut.y), len(self._l)

    def _room_for(self, strip: int, room: "_Room") -> Tensor:
        """Memory for the cells of a strip and their border."""
        rows, columns = self._strips[strip].shape
        return room.take("field", rows + 1, columns + 1, len(self._l))

    def _field(self, strip: int, gamma: float, room: "_Room") -> Tensor:
        """The rates of a strip, behind a border yet to be filled."""
        field = self._room_for(strip, room)
        rates = self._rates(strip, gamma, field[1:, 1:])
        if self._band is not None:
            lanes, t, length = self._lanes[strip], self._t, self._l
            if self._alike:
                one = torch.zeros_like(t[:1])
                lanes, t, length = lanes.of_lanes(one, one), t[:1], length[:1]
            rates.masked_fill_(~band_mask(lanes, t, length, self._band), NEVER)
        return field

    def _rates(self, strip: int, gamma: float, out: Tensor) -> Tensor:
        """Base 2 logarithms: cosines over γ less the growth of the number of paths."""
        x, y = self._steps(strip)
        torch.baddbmm(
            x.new_tensor(-GROWTH),
            y.flatten(0, 1).expand(len(x), -1, -1),
            x.mT,
            alpha=1 / (gamma * math.log(2)),
            out=out.view(len(x), -1, x.shape[1]),
        )
        return out

    def _add_products(self, strip: int, alignment: Tensor, to_x: Tensor, to_y: Tensor) -> None:
        """Add to the gradients of x and y what those of a strip's cosines give."""
        x, y = self._steps(strip)
        cells = alignment.view(len(x), -1, x.shape[1])
        if len(self._strips) == 1:
            to_x.baddbmm_(cells.mT, y.flatten(0, 1).expand(len(x), -1, -1))
            to_y.flatten(0, 1).addbmm_(cells, x)
            return
        x_part = torch.bmm(cells.mT, y.flatten(0, 1).expand(len(x), -1, -1))
        y_part = x.new_zeros(y.shape)
        y_part.flatten(0, 1).addbmm_(cells, x)
        # Where a strip reaches beyond its lane, zeros are added.
        sides = zip((to_x, to_y), (x_part, y_part), self._where(strip), strict=True)
        for total, part, steps in sides:
            index = steps * total.shape[1] + torch.arange(total.shape[1], device=total.device)
            total.flatten(0, 1).index_add_(0, index.flatten(), part.flatten(0, 1))

    def _steps(self, strip: int) -> tuple[Tensor, Tensor]:
        """What the rows (rows, b, D) and columns (columns, c, D) of a strip are."""
        if len(self._strips) == 1:
            return self._x, self._cut.y
        x, y = (
            side[steps, torch.arange(side.shape[1], device=side.device)]
            for side, steps in zip((self._x, self._cut.y), self._where(strip), strict=True)
        )
        return x, y

    def _where(self, strip: int) -> tuple[Tensor, Tensor]:
        """Which steps of each x (rows, b) and y (columns, c) a strip holds."""
        it = self._strips[strip]
        row, column = (torch.arange(n, device=it.start.device)[:, None] for n in it.shape)
        x = (it.start + row).clamp(max=len(self._x) - 1)
        y = (it.first + column).clamp(max=len(self._cut.y) - 1)
        return x, y


def _ratios_fit(gamma: float, band: float | None, dtype: torch.dtype) -> bool:
    # What lies outside a band weighs nothing, and has no ratio.
    return band is None and ratios.fits(gamma, dtype)


class _Room:
    """Memory that the tiles of a thread use one after the other."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """What is held under the name, of this shape, whatever it holds; made where too small."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size:
            self._held.pop(name, None)
            held = self._held[name] = self._like.new_empty(size)
        return held[:size].view(shape)


class _Rooms:
    """As many as are in use at once."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._free: list[_Room] = []

    @contextmanager
    def borrowed(self) -> Iterator[_Room]:
        try:
            room = self._free.pop()
        except IndexError:
            room = _Room(self._like)
        yield room
        self._free.append(room)


Result = TypeVar("Result")


def _side_by_side(work: Callable[[_Cut], Result], cuts: list[_Cut]) -> list[Result]:
    if cuts[0].x.device.type == "cpu":
        return in_threads(work, cuts)
    return [work(cut) for cut in cuts]
