"""The engine: building blocks of fast similarities, for authors of similarities.

A plain `score` needs none of this. Read "Write a fast similarity" in the docs first, and the
README in this folder for what may change between releases.

Loops and memory: `loops_pay`, `few_items`, `Room`, `tile_shape`, `score_tiles`, `split_tree`,
`check_tree`, `Tree`. Lengths: `Group`, `longest_first`, `group_by_length`. Vectors and gradients:
`to_unit`, `unit_gradient`, `cosines`, `zeroed`, `scaled`,
`first_derivative_only`. Options: `positive_integer`,
`single_number`. Devices
without float64: `has_float64`, `exact_on`. Operators and kernels: `Operator`, `use_kernels`,
`obstacle`, `halves`, `terms`, `FEATURES`, and, for modules of Triton kernels only, `jit_for_any`
and `products`.
"""

from typing import TYPE_CHECKING, Any

from clipseq.engine.devices import exact_on, has_float64
from clipseq.engine.gradients import first_derivative_only, scaled
from clipseq.engine.kernels import FEATURES, halves, obstacle, terms, use_kernels
from clipseq.engine.lengths import Group, group_by_length, longest_first
from clipseq.engine.operators import Operator
from clipseq.engine.options import positive_integer, single_number
from clipseq.engine.padding import zeroed
from clipseq.engine.tiling import Tree, check_tree, score_tiles, split_tree, tile_shape
from clipseq.engine.unit_vectors import cosines, to_unit, unit_gradient
from clipseq.engine.workspace import Room, few_items, loops_pay

if TYPE_CHECKING:
    from clipseq.engine.triton_tile import jit_for_any, products

__all__ = [
    "FEATURES",
    "Group",
    "Operator",
    "Room",
    "Tree",
    "check_tree",
    "cosines",
    "exact_on",
    "few_items",
    "first_derivative_only",
    "group_by_length",
    "halves",
    "has_float64",
    "jit_for_any",
    "longest_first",
    "loops_pay",
    "obstacle",
    "positive_integer",
    "products",
    "scaled",
    "score_tiles",
    "single_number",
    "split_tree",
    "terms",
    "tile_shape",
    "to_unit",
    "unit_gradient",
    "use_kernels",
    "zeroed",
]


def __getattr__(name: str) -> Any:
    if name in ("jit_for_any", "products"):  # their module imports Triton
        from clipseq.engine import triton_tile

        return getattr(triton_tile, name)
    raise AttributeError(f"module 'clipseq.engine' has no attribute {name!r}")
