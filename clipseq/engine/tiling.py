"""Every pair of two batches, tile by tile, so that memory stays bounded whatever their sizes."""

from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

Tree = Any
"""Tensors, or tuples, lists, dicts and named tuples of trees."""


def tile_shape(batch: int, others: int, pairs: int) -> tuple[int, int]:
    """Rows and columns of a tile of at most `pairs` pairs (at least one), as square as fits."""
    rows = min(batch, max(1, isqrt(pairs)))
    columns = min(others, max(1, pairs // rows))
    return min(batch, max(1, pairs // columns)), columns


def split_tree(tree: Tree, size: int) -> Iterator[Tree]:
    """Cut every leaf along the batch.

    One `split` a leaf, because its backward is one concatenation; a slice a tile would write a
    full-size zero tensor each.
    """
    leaves, spec = tree_flatten(tree)
    for parts in zip(*(leaf.split(size) for leaf in leaves), strict=True):
        yield tree_unflatten(list(parts), spec)


def check_tree(tree: Tree, batch: int, where: str) -> None:
    """Raise TypeError unless `tree` holds tensors only, and each has `batch` rows."""
    leaves, _ = tree_flatten(tree)
    if not leaves:
        raise TypeError(f"{where} must return a tree of tensors, got {tree!r}")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{where} must return a tree of tensors; one leaf is {leaf!r}")
        if leaf.ndim == 0 or leaf.shape[0] != batch:
            raise TypeError(
                f"{where} must return tensors with the batch of {batch} first; "
                f"one leaf has shape {tuple(leaf.shape)}"
            )


def score_tiles(
    score: Callable[[Tree, Tree], Tensor], x: Tree, y: Tree, batch: int, others: int, pairs: int
) -> Float[Tensor, "B C"]:
    """``score`` of every pair, at most `pairs` pairs at a time, each tile recomputed in backward.

    Forward keeps the scores only. Backward holds what one tile's graph holds. Time is that of
    the scores twice and of their gradient once; a single tile is scored once.
    """
    rows, columns = tile_shape(batch, others, pairs)
    if rows >= batch and columns >= others:
        return score(x, y)
    y_tiles = list(split_tree(y, columns))
    bands = []
    for x_tile in split_tree(x, rows):
        if torch.is_grad_enabled():
            band = [checkpoint(score, x_tile, y_tile, use_reentrant=False) for y_tile in y_tiles]
        else:
            band = [score(x_tile, y_tile) for y_tile in y_tiles]
        bands.append(torch.cat(band, dim=1))
    return torch.cat(bands, dim=0)
