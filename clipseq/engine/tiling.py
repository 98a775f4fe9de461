"""Scores of every pair of two batches, tile by tile, in memory that does not grow with them."""

from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

Tree = Any
"""A tensor, or a tuple, list, dict or named tuple of trees."""


def tile_shape(batch: int, others: int, pairs: int) -> tuple[int, int]:
    """Return the rows and columns of a nearly square tile, of at most `pairs` pairs.

    A tile has at least one pair.
    """
    rows = min(batch, max(1, isqrt(pairs)))
    columns = min(others, max(1, pairs // rows))
    return min(batch, max(1, pairs // columns)), columns


def split_tree(tree: Tree, size: int) -> Iterator[Tree]:
    """Cut every leaf along the batch, `size` sequences at a time.

    Each leaf is cut by one `split`, whose backward is one concatenation. The backward of slicing it
    tile by tile would write a tensor of zeros of the full size for every tile.
    """
    leaves, spec = tree_flatten(tree)
    for parts in zip(*(leaf.split(size) for leaf in leaves), strict=True):
        yield tree_unflatten(list(parts), spec)


def check_tree(tree: Tree, batch: int, where: str) -> None:
    """Raise TypeError unless `tree` holds only tensors and each has `batch` rows."""
    leaves, _ = tree_flatten(tree)
    if not leaves:
        raise TypeError(f"{where} must return a tree of tensors, got {tree!r}")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{where} must return a tree of tensors, got the leaf {leaf!r}")
        if leaf.ndim == 0 or leaf.shape[0] != batch:
            raise TypeError(
                f"{where} must return tensors whose first axis is the batch of {batch}, "
                f"got a leaf of shape {tuple(leaf.shape)}"
            )


def score_tiles(
    score: Callable[[Tree, Tree], Tensor], x: Tree, y: Tree, batch: int, others: int, pairs: int
) -> Float[Tensor, "B C"]:
    """Score every pair, at most `pairs` pairs at a time, and recompute each tile in backward.

    Forward keeps only the scores; backward holds the graph of one tile. The time is that of
    computing the scores twice and their gradient once. A single tile is scored only once.
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


def score_matched_tiles(
    score_pairs: Callable[[Tree, Tree], Tensor], x: Tree, y: Tree, count: int, pairs: int
) -> Float[Tensor, "n"]:
    """Score `count` matched pairs, at most `pairs` at a time, as `score_tiles` does."""
    size = max(1, pairs)
    if size >= count:
        return score_pairs(x, y)
    tiles = zip(split_tree(x, size), split_tree(y, size), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(score_pairs, *tile, use_reentrant=False) for tile in tiles])
    return torch.cat([score_pairs(*tile) for tile in tiles])
