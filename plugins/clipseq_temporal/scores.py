"""The scores of all pairs and their gradient, as operators that torch.compile takes whole."""

import math
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from clipseq.kernels import use_kernels
from clipseq_temporal.recursion import GROWTH, backward, band_mask, forward, log_paths

CELLS = 2**20
"""Most cells (T·L·pairs) of a tile: what bounds the memory."""


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
    for tile in _tiles(x, y, x_lengths, y_lengths):
        weight = forward(tile.rates(gamma), tile.t, tile.l, tile.allowed(band))
        # 1 - (softDTW(-s) + t + l + γ log N) / (t + l); λ(t + l) cancels between the two.
        paths = counts[tile.rows][:, tile.columns].to(x.dtype)
        mean = weight.view(paths.T.shape).T - paths
        lengths = x_lengths[tile.rows, None] + y_lengths[tile.columns]
        scores[tile.rows[:, None], tile.columns] = gamma * math.log(2) * mean / lengths
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
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    grad = grad / (x_lengths[:, None] + y_lengths)
    for tile in _tiles(x, y, x_lengths, y_lengths):
        rates, allowed = tile.rates(gamma), tile.allowed(band)
        shares: list[Tensor] = []
        forward(rates, tile.t, tile.l, allowed, shares)
        lanes = grad[tile.rows[:, None], tile.columns].T.reshape(-1)
        # γ·log 2 times the weight, and rates over γ·log 2: the gradient to s is that to the rates.
        alignment = backward(lanes, shares, rates, tile.t, tile.l, allowed)
        tile.add_products(alignment, grad_x, grad_y)
    return grad_x, grad_y


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
class _Tile:
    """Pairs of items of like lengths, cut to the longest of them.

    Lane ``j·b + i`` is the pair of the tile's i-th x and j-th y.
    """

    x: Tensor  # (T, b, D)
    y: Tensor  # (L·c, D), step-major
    rows: Tensor
    columns: Tensor
    t: Tensor
    l: Tensor  # noqa: E741

    def rates(self, gamma: float) -> Tensor:
        """(T, L, c·b): base 2 logarithms, cosines over γ less the growth of the number of paths."""
        products = torch.baddbmm(
            self.x.new_tensor(-GROWTH),
            self.y.expand(len(self.x), -1, -1),
            self.x.mT,
            alpha=1 / (gamma * math.log(2)),
        )
        return products.view(len(self.x), len(self.y) // len(self.columns), -1)

    def allowed(self, band: float | None) -> Tensor | None:
        if band is None:
            return None
        others = len(self.y) // len(self.columns)
        return band_mask(self.t, self.l, len(self.x), others, band)

    def add_products(self, alignment: Tensor, grad_x: Tensor, grad_y: Tensor) -> None:
        """Add the gradients of x and y, given that of every cosine (T, L, c·b)."""
        steps, rows, features = self.x.shape
        cells = alignment.view(steps, len(self.y), rows)
        to_x = torch.bmm(cells.mT, self.y.expand(steps, -1, -1))
        grad_x[self.rows, :steps] += to_x.transpose(0, 1)
        to_y = self.y.new_zeros(len(self.y), features).addbmm_(cells, self.x)
        others = len(self.y) // len(self.columns)
        grad_y[self.columns, :others] += to_y.view(others, -1, features).transpose(0, 1)


def _tiles(x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor) -> Iterator[_Tile]:
    # Sorted, so that a tile of short sequences is small, whatever the longest one is.
    x_order, y_order = x_lengths.argsort(descending=True), y_lengths.argsort(descending=True)
    x_sorted, y_sorted = x_lengths[x_order].tolist(), y_lengths[y_order].tolist()
    row = 0
    while row < len(x_order):
        # Many rows and few columns: rows are the lanes that lie side by side.
        rows = x_order[row : row + _ROWS]
        steps = x_sorted[row]
        row += len(rows)
        x_tile = x[rows, :steps].transpose(0, 1).contiguous()
        column = 0
        while column < len(y_order):
            others = y_sorted[column]
            count = max(1, CELLS // (steps * others * len(rows)))
            columns = y_order[column : column + count]
            column += len(columns)
            yield _Tile(
                x=x_tile,
                y=y[columns, :others].transpose(0, 1).reshape(-1, y.shape[2]),
                rows=rows,
                columns=columns,
                t=x_lengths[rows].repeat(len(columns)),
                l=y_lengths[columns].repeat_interleave(len(rows)),
            )


_ROWS = 64
