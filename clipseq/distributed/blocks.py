"""Blocks: the y of one rank, as prepared by the similarity, packed into one buffer."""

import hashlib
import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from clipseq.distributed.world import require_agreement, share
from clipseq.engine.tiling import Tree

_ALIGNMENT = 64  # bytes, for every tensor in the buffer; torch aligns its own in the same way


@attrs.frozen(eq=False)
class Layout:
    """The layout of one rank's tensors in its buffer."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def offsets(self) -> list[int]:
        """The start of each tensor, and the end of the buffer, in bytes."""
        offsets = [0]
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = math.prod(shape) * dtype.itemsize
            offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        return offsets

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return one buffer with copies of `tensors`."""
        buffer = torch.empty(self.offsets[-1], dtype=torch.uint8, device=tensors[0].device)
        for view, tensor in zip(self.unpack(buffer), tensors, strict=True):
            view.copy_(tensor)
        return buffer

    def unpack(self, buffer: Tensor) -> list[Tensor]:
        """Return the tensors in a buffer, as views of it."""
        views = []
        for shape, dtype, start in zip(self.shapes, self.dtypes, self.offsets, strict=False):
            size = math.prod(shape) * dtype.itemsize
            views.append(buffer[start : start + size].view(dtype).view(shape))
        return views

    def for_gradients(self) -> "Layout":
        """Return the layout of the gradients; only floating point tensors have one."""
        kept = [k for k, dtype in enumerate(self.dtypes) if dtype.is_floating_point]
        return Layout(tuple(self.shapes[k] for k in kept), tuple(self.dtypes[k] for k in kept))


@attrs.frozen(eq=False)
class Blocks:
    """The block of this rank, and the layouts of the blocks of all ranks.

    A tensor that occurs several times in the tree is sent once: parts of ``combined`` share steps.

    Attributes:
        tensors: the distinct tensors of this rank's tree.
        layouts: the layout of every rank's block.
        steps: L of every rank, before `prepare_y`.
        wanted: True if any rank needs gradients of y.
    """

    tensors: list[Tensor]
    layouts: list[Layout]
    steps: list[int]
    wanted: bool
    _spec: TreeSpec
    _places: list[int]

    @classmethod
    def meet(cls, tree: Tree, steps: int) -> "Blocks":
        """Exchange L and the shapes of the trees with all ranks.

        Raises:
            ClipseqError: the trees of the ranks differ in structure; raised on every rank.
        """
        leaves, spec = tree_flatten(tree)
        tensors: list[Tensor] = []
        first: dict[int, int] = {}
        for leaf in leaves:
            if id(leaf) not in first:
                first[id(leaf)] = len(tensors)
                tensors.append(leaf)
        places = [first[id(leaf)] for leaf in leaves]
        dtypes = tuple(tensor.dtype for tensor in tensors)
        built = repr((spec, places, dtypes, [tensor.ndim for tensor in tensors]))
        digest = hashlib.blake2b(built.encode(), digest_size=7).digest()
        device = tensors[0].device
        digests = share([int.from_bytes(digest, "big")], device)
        require_agreement([row[0] for row in digests], "the structure of the prepared y")
        wants = any(tensor.requires_grad for tensor in tensors) and torch.is_grad_enabled()
        numbers = [int(wants), steps, *(n for tensor in tensors for n in tensor.shape)]
        rows = share(numbers, device)
        layouts = []
        for _, _, *sizes in rows:
            left = iter(sizes)
            shapes = tuple(tuple(next(left) for _ in tensor.shape) for tensor in tensors)
            layouts.append(Layout(shapes, dtypes))
        wanted = any(flag for flag, *_ in rows)
        return cls(tensors, layouts, [row[1] for row in rows], wanted, spec, places)

    def tree(self, tensors: Sequence[Tensor]) -> Tree:
        """Return the tree that the tensors of a block make up."""
        return tree_unflatten([tensors[place] for place in self._places], self._spec)
