"""The scores of all pairs and their gradient, as an operator."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.engine import Operator, Room, longest_first, scaled
from clipseq_temporal.ratios import SCALE, InPlace, Kept, fits
from clipseq_temporal.recursion import (
    GROWTH,
    NEVER,
    Reach,
    Sweep,
    backward,
    blocks,
    cells_within,
    confine,
    diagonals,
    edges,
    forward,
    log_paths,
    reach_of,
    split_by_band,
    strips,
    ways_at_once,
)

NUMBERS = 16 * 2**20
"""Largest number of elements that a tile holds, except borders, and a third more where ratios
overflow. It bounds the memory."""

DIAGONAL = 2**16
"""Cells on a long anti-diagonal, over all lanes of a tile: enough for an operation to take longer
than its overhead and to be shared among threads, but few enough for an anti-diagonal to stay in the
cache."""

ROWS, ROWS_IN_BAND = 32, 64
"""Largest number of x in a tile: products are fastest with many x. (In a band, an anti-diagonal has
few cells.)"""

STEP, STEP_IN_BAND = 2**15, 2**13
"""Fixed cost of an anti-diagonal, in cells. Tiles of sequences of similar lengths have fewer cells,
but more anti-diagonals. (In a band, a cell costs more.)"""


def _score(
    x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, gamma: float, band: float | None
) -> Tensor:
    scores = x.new_empty(len(x), len(y))
    counts = _log_paths_table(x_lengths, y_lengths, band, x.dtype)
    room = _Room(x)
    in_ratios = _ratios_fit(gamma, band, x.dtype)
    groups, others = _groups(x_lengths, y_lengths, band, 1)
    for rows in (_Group.make(x, x_lengths, items) for items in groups):
        for columns in (_Group.make(y, y_lengths, items) for items in others):
            tile = _Tile(rows, columns, band, in_ratios, room)
            weight = tile.weight(gamma)
            # If ratios overflow in one tile, they usually do in the next.
            in_ratios = tile.in_ratios
            # 1 - (softDTW(-s) + t + l + γ log N) / (t + l); λ(t + l) cancels between the two.
            paths = counts[rows.items][:, columns.items]
            mean = weight.view(paths.T.shape).T - paths
            lengths = rows.lengths[:, None] + columns.lengths
            scores[rows.items[:, None], columns.items] = gamma * math.log(2) * mean / lengths
    return scores


def _differentiate(
    grad: Tensor,
    scores: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    gamma: float,
    band: float | None,
) -> tuple[Tensor, Tensor]:
    # Every tile is computed again: only inputs and scores were kept.
    grad, largest = scaled(grad)
    grad = grad / (x_lengths[:, None] + y_lengths)
    room = _Room(x)
    in_ratios = _ratios_fit(gamma, band, x.dtype)
    # Each cell needs a weight and two ratios, or a rate and three shares.
    groups, others = _groups(x_lengths, y_lengths, band, 3 if in_ratios else 4)
    to_ys = [y.new_zeros(int(y_lengths[items[0]]), len(items), y.shape[2]) for items in others]
    grad_x = torch.zeros_like(x)
    for rows in (_Group.make(x, x_lengths, items) for items in groups):
        to_x = torch.zeros_like(rows.values)
        for items, to_y in zip(others, to_ys, strict=True):
            columns = _Group.make(y, y_lengths, items)
            tile = _Tile(rows, columns, band, in_ratios, room)
            pairs = rows.items[:, None], columns.items
            tile.differentiate(grad[pairs].T, scores[pairs].T, gamma, to_x, to_y)
            in_ratios = tile.in_ratios
        grad_x[rows.items, : len(to_x)] = to_x.mul_(largest).transpose(0, 1)
    del room, tile, rows, columns  # frees all memory of tiles
    grad_y = torch.zeros_like(y)
    for items, to_y in zip(others, to_ys, strict=True):
        grad_y[items, : len(to_y)] = to_y.mul_(largest).transpose(0, 1)
    return grad_x, grad_y


temporal_scores = Operator(
    "clipseq::temporal_scores",
    _score,
    _differentiate,
    kernels="clipseq_temporal.triton_kernels",
)
"""(B, C) scores of unit steps x (B, T, D) and y (C, L, D), both packed to the front."""


def _log_paths_table(
    x_lengths: Tensor, y_lengths: Tensor, band: float | None, dtype: torch.dtype
) -> Tensor:
    """Return `log_paths` of every pair, (B, C)."""
    pairs = torch.cartesian_prod(x_lengths, y_lengths)
    table = log_paths(pairs[:, 0], pairs[:, 1], band, dtype)
    return table.view(len(x_lengths), len(y_lengths))


@attrs.frozen(eq=False)
class _Group:
    """Sequences of similar lengths, cut to the longest of them."""

    items: Int[Tensor, "n"]  # positions in the batch
    lengths: Int[Tensor, "n"]
    values: Float[Tensor, "S n D"]

    @classmethod
    def make(cls, values: Tensor, lengths: Tensor, items: Tensor) -> "_Group":
        lengths = lengths[items]
        steps = int(lengths[0])  # the first is the longest
        # This copies only these sequences, once.
        some = torch.stack([values[item, :steps] for item in items.tolist()], dim=1)
        return cls(items, lengths, some)


def _groups(
    x_lengths: Tensor, y_lengths: Tensor, band: float | None, numbers: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the positions of groups of x and of groups of y in their batches.

    A tile has one group of each, and holds `numbers` elements for every cell.
    """
    (x_order, x_sorted), (y_order, y_sorted) = longest_first(x_lengths), longest_first(y_lengths)
    most = max(1, NUMBERS // (numbers * x_sorted[0] * y_sorted[0]))
    step, width = (STEP, ROWS) if band is None else (STEP_IN_BAND, ROWS_IN_BAND)
    cells = y_sorted[0] * len(y_sorted)
    sizes, first = [], 0
    for count in split_by_band(x_sorted, band):
        some = x_sorted[first : first + count]
        sizes += _sizes(some, min(width, most), y_sorted[0] * step, step, cells)
        first += count
    rows = x_order.split(sizes)
    steps = [int(x_lengths[items[0]]) for items in rows]
    cells = sum(count * len(items) for count, items in zip(steps, rows, strict=True))
    others, first = [], 0
    while first < len(y_sorted):
        columns = len(y_sorted)
        for items in rows:
            at_once, held = _of_a_lane(
                x_lengths[items], y_lengths[y_order[first : first + 1]], band, numbers
            )
            lanes = min(DIAGONAL // at_once, NUMBERS // held)
            columns = min(columns, max(1, lanes // len(items)))
        left = len(y_sorted) - first
        if columns < left < 1.25 * columns:  # two equal tiles: a small one would be slow
            columns = -(-left // 2)
        lengths = y_sorted[first : first + columns]
        sizes = _sizes(lengths, columns, sum(steps) * step, len(rows) * step, cells)
        others += y_order[first : first + columns].split(sizes)
        first += columns
    return list(rows), others


def _of_a_lane(
    x_lengths: Tensor, y_length: Tensor, band: float | None, numbers: int
) -> tuple[int, int]:
    """Return, per lane, the longest anti-diagonal and the number of elements in a tile."""
    some = strips(x_lengths, y_length, band)
    if band is None:
        (rows, columns), *_ = (strip.shape for strip in some)
        return min(rows, columns), numbers * rows * columns
    x_of = torch.arange(len(x_lengths), device=x_lengths.device)
    at_once, fields, cells = 1, 0, 0
    for strip in some:
        lanes = strip.for_lanes(x_of, torch.zeros_like(x_of))
        reach = reach_of(*edges(lanes, x_lengths, y_length, band, torch.float32))
        counts = [count for _, count in diagonals(*strip.shape, reach)]
        at_once, cells = max(at_once, *counts), cells + sum(counts)
        fields = max(fields, math.prod(strip.shape))
    alike = bool((x_lengths == x_lengths[0]).all())
    # Per cell of a strip: the cell itself, its distance from the band if lanes differ, and shares.
    return at_once, fields * (1 if alike else 2) + cells * (numbers - 1)


def _sizes(lengths: list[int], most: int, fixed: int, each: int, cells: int) -> list[int]:
    """Return sizes of groups of neighbours in descending lengths, at most `most`, at a low cost.

    A group costs ``fixed + longest · (each + size · cells)``. The cost is minimal where `most` does
    not bind and there are at most `_CUTS` different lengths.
    """
    # Keeping all sequences of one length together, along with shorter ones, never costs more.
    cuts = [k for k in range(len(lengths)) if k == 0 or lengths[k] < lengths[k - 1]]
    cuts = [*cuts[:: -(-len(cuts) // _CUTS)], len(lengths)]
    costs, starts = [0], [0]
    for k, end in enumerate(cuts[1:], 1):
        found = []
        for before, start in enumerate(cuts[:k]):
            times = -(-(end - start) // most)
            cost = times * (fixed + lengths[start] * each) + lengths[start] * (end - start) * cells
            found.append((costs[before] + cost, before))
        cost, before = min(found)
        costs.append(cost)
        starts.append(before)
    sizes: list[int] = []
    last = len(cuts) - 1
    while last > 0:
        size = cuts[last] - cuts[starts[last]]
        times = -(-size // most)
        sizes += [size // times + (k >= times - size % times) for k in range(times)]
        last = starts[last]
    return sizes[::-1]


_CUTS = 64
"""Largest number of places where a batch may be cut, since all pairs of places are compared."""


class _Tile:
    """The cells of all pairs of two groups, strip by strip.

    Lane ``j·b + i`` is the pair of the i-th x and the j-th y.

    Attributes:
        in_ratios: True to compute in `ratios`; becomes False once they have overflowed.
    """

    def __init__(
        self, rows: _Group, columns: _Group, band: float | None, in_ratios: bool, room: "_Room"
    ) -> None:
        self.in_ratios = in_ratios
        self._room = room
        self._strips = strips(rows.lengths, columns.lengths, band)
        self._x, self._y = rows.values, columns.values
        b, c = len(rows.items), len(columns.items)
        x_of = torch.arange(b, device=rows.items.device).repeat(c)
        y_of = torch.arange(c, device=rows.items.device).repeat_interleave(b)
        self._t = rows.lengths[x_of]
        self._l = columns.lengths[y_of]
        self._lanes = [strip.for_lanes(x_of, y_of) for strip in self._strips]
        # All lanes then have the same band.
        self._alike = band is not None and all(
            bool((side == side[0]).all()) for side in (rows.lengths, columns.lengths)
        )
        self._reaches: list[Reach | None] = [None] * len(self._strips)
        self._edges: list[tuple[Tensor, Tensor]] = []
        if band is not None:
            some = torch.arange(1 if self._alike else len(self._t), device=self._t.device)
            for k, strip in enumerate(self._lanes):
                lanes = strip.for_lanes(some, some)
                low, high = edges(lanes, self._t[some], self._l[some], band, self._x.dtype)
                self._reaches[k] = reach_of(low, high)
                self._edges.append((low, high))

    def weight(self, gamma: float) -> Tensor:
        """Return log2 of the total weight of each lane's paths."""
        if self.in_ratios:
            shape = self._shape()
            field = self._room.made(
                "in place", shape, lambda: InPlace(self._room.take("ratios", *shape))
            )
            self._rates(0, gamma, field.weights).exp2_()
            result = field.forward(self._t, self._l)
            self.in_ratios = bool(result.isfinite().all())
            if self.in_ratios:
                return result
            del field
            self._room.clear()
        sweeps = self._sweeps(keep=False)
        return forward(self._lanes, lambda k: self._filled(sweeps[k], k, gamma), self._l)

    def differentiate(
        self, grad: Tensor, scores: Tensor, gamma: float, to_x: Tensor, to_y: Tensor
    ) -> None:
        """Add the gradient of ``grad · score`` through the cosines to `to_x` and `to_y`.

        The score is γ·log 2 times the weight, and rates are cosines over γ·log 2, so the factors
        cancel. grad (at most 1) and scores are (c, b), to_x is (T, b, D), to_y is (L, c, D).
        """
        grad = grad.reshape(-1)
        if self.in_ratios:
            self.in_ratios = self._differentiate_ratios(grad, gamma, to_x, to_y)
            if self.in_ratios:
                return
            self._room.clear()
        # A constant that is added to every rate adds the same to all paths. With the score
        # subtracted, logarithms along the paths that matter stay small and their differences
        # precise.
        less = scores / (gamma * math.log(2))
        sweeps = self._sweeps(keep=True)
        forward(self._lanes, lambda k: self._filled(sweeps[k], k, gamma, less), self._l)
        for k, alignment in backward(grad * SCALE, self._lanes, sweeps.__getitem__, self._l):
            self._add_products(k, alignment, to_x, to_y)

    def _differentiate_ratios(self, grad: Tensor, gamma: float, to_x: Tensor, to_y: Tensor) -> bool:
        """Differentiate and return True, or add nothing and return False if a ratio overflows."""
        shape = self._shape()
        field = self._room.made("kept", shape, lambda: Kept(self._room.take("ratios", 3, *shape)))
        self._rates(0, gamma, field.weights).exp2_()
        result = field.forward(self._t, self._l)
        if not bool(result.isfinite().all()):
            return False
        alignment = field.backward(grad * SCALE, self._t, self._l)
        cells = alignment.view(len(self._x), -1, self._x.shape[1])
        # Any value in the alignment that is not finite shows up here.
        y_part = self._room.take("to y", *to_y.shape).zero_()
        y_part.flatten(0, 1).addbmm_(cells, self._x)
        if not bool(y_part.isfinite().all()):
            return False
        to_y.add_(y_part, alpha=1 / SCALE)
        y = self._y.flatten(0, 1).expand(len(cells), -1, -1)
        to_x.baddbmm_(cells.mT, y, alpha=1 / SCALE)
        return True

    def _shape(self) -> tuple[int, int, int]:
        return len(self._x), len(self._y), len(self._l)

    def _sweeps(self, *, keep: bool) -> list[Sweep]:
        """Return the sweep of every strip; their fields share memory."""

        def make() -> list[Sweep]:
            lanes, shapes = len(self._l), [strip.shape for strip in self._strips]
            sizes = [(rows + 1) * (columns + 1) * lanes for rows, columns in shapes]
            field = self._room.take("field", max(sizes))
            each = list(zip(shapes, self._reaches, strict=True))
            ways = self._room.take("ways", max(ways_at_once(*it) for it in each) * lanes)
            kept: list[Tensor | None] = [None] * len(each)
            if keep:
                cells = [3 * cells_within(*it) * lanes for it in each]
                kept = list(self._room.take("shares", sum(cells)).split(cells))
            return [
                Sweep(field[:size].view(rows + 1, columns + 1, lanes), reach, ways, shares)
                for size, ((rows, columns), reach), shares in zip(sizes, each, kept, strict=True)
            ]

        # Without a band, or if all lanes have the same band, tiles of one shape share their sweeps.
        same = self._alike or not self._edges
        return self._room.made("sweeps", self._shape() if same else None, make)

    def _filled(self, sweep: Sweep, strip: int, gamma: float, less: Tensor | float = 0.0) -> Sweep:
        """Fill the field of a sweep with the rates of its strip, and return it."""
        banded = self._reaches[strip] is not None
        if banded:
            sweep.field.fill_(NEVER)
        rates = self._rates(strip, gamma, sweep.field[1:, 1:], less)
        if banded:
            low, high = self._edges[strip]
            spare = self._room.take("spare", *rates.shape[:2], low.shape[1])
            confine(rates, low, high, spare)
        return sweep

    def _rates(self, strip: int, gamma: float, out: Tensor, less: Tensor | float = 0.0) -> Tensor:
        """Write the rates, base 2 logarithms, of the cells that a path may reach.

        A rate is a cosine over γ minus the growth of the number of paths, minus `less` (c, b),
        which is subtracted per pair.
        """
        x, y = self._steps(strip)
        constant = x.new_full((), -GROWTH) - less
        if constant.ndim > 0:
            constant = constant.repeat(len(y), 1)
        for rows, columns in blocks(self._strips[strip].shape, self._reaches[strip]):
            some_x, some_y = x[rows], y[columns].flatten(0, 1)
            cells = out[rows, columns].view(len(some_x), -1, x.shape[1])
            torch.baddbmm(
                constant if constant.ndim == 0 else constant[: len(some_y)],
                some_y.expand(len(some_x), -1, -1),
                some_x.mT,
                alpha=1 / (gamma * math.log(2)),
                out=cells,
            )
        return out

    def _add_products(self, strip: int, alignment: Tensor, to_x: Tensor, to_y: Tensor) -> None:
        """Add the gradients of x and y that come from the cosines of a strip, over `SCALE`."""
        x, y = self._steps(strip)
        rows, columns = self._where(strip)
        x_part, y_part = to_x[rows], to_y[columns]
        gathered = not isinstance(rows, slice)
        if gathered:
            x_part, y_part = torch.zeros_like(x), torch.zeros_like(y)
        for some, others in blocks(self._strips[strip].shape, self._reaches[strip]):
            some_x, some_y = x[some], y[others].flatten(0, 1)
            cells = alignment[some, others].view(len(some_x), -1, x.shape[1])
            some_y = some_y.expand(len(some_x), -1, -1)
            x_part[some].baddbmm_(cells.mT, some_y, alpha=1 / SCALE)
            y_part[others].flatten(0, 1).addbmm_(cells, some_x, alpha=1 / SCALE)
        if gathered:  # beyond the end of a lane, this adds zeros
            to_x.index_put_(rows, x_part, accumulate=True)
            to_y.index_put_(columns, y_part, accumulate=True)

    def _steps(self, strip: int) -> tuple[Tensor, Tensor]:
        """Return the steps in the rows (rows, b, D) and columns (columns, c, D) of a strip."""
        rows, columns = self._where(strip)
        return self._x[rows], self._y[columns]

    def _where(self, strip: int) -> tuple[Any, Any]:
        """Return the rows of a strip in x and its columns in y: slices if all lanes are alike."""
        it = self._strips[strip]
        rows, columns = it.shape
        if len(self._strips) == 1:
            return slice(rows), slice(columns)
        if self._alike:
            start, first = int(it.start[0]), int(it.first[0])
            return slice(start, start + rows), slice(first, first + columns)

        def index(starts: Tensor, count: int, side: Tensor) -> tuple[Tensor, Tensor]:
            steps = starts + torch.arange(count, device=starts.device)[:, None]
            sequences = torch.arange(side.shape[1], device=starts.device)
            return steps.clamp(max=len(side) - 1), sequences

        return index(it.start, rows, self._x), index(it.first, columns, self._y)


def _ratios_fit(gamma: float, band: float | None, dtype: torch.dtype) -> bool:
    # Cells outside a band have the weight zero, so they do not have a ratio.
    return band is None and fits(gamma, dtype)


Made = TypeVar("Made")


class _Room(Room):
    """A `Room` that also keeps the views made of it, for later tiles of the same shape."""

    def __init__(self, like: Tensor) -> None:
        super().__init__(like)
        self._made: dict[str, tuple[tuple[int, ...] | None, Any]] = {}

    def made(self, name: str, shape: tuple[int, ...] | None, make: Callable[[], Made]) -> Made:
        """Return the last result under this name if it has this shape; otherwise make a new one."""
        if shape is None or self._made.get(name, (None,))[0] != shape:
            self._made.pop(name, None)
            self._made[name] = shape, make()
        return cast(Made, self._made[name][1])

    def clear(self) -> None:
        self._made.clear()
        super().clear()
