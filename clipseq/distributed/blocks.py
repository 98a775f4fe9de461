"""What travels: one process's y, as the similarity prepared it, in one piece of memory."""

import hashlib
import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from clipseq.distributed.world import require_agreement, share
from clipseq.engine.tiling import Tree

_ALIGNMENT = 64  # bytes; of every tensor in the buffer, as torch aligns its own


@attrs.frozen(eq=False)
class Layout:
    """How one rank's tensors lie in its buffer."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def offsets(self) -> list[int]:
        """Where each tensor starts, and where the buffer ends; in bytes."""
        offsets = [0]
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = math.prod(shape) * dtype.itemsize
            offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        return offsets

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """One buffer with copies of `tensors`."""
        buffer = torch.empty(self.offsets[-1], dtype=torch.uint8, device=tensors[0].device)
        for view, tensor in zip(self.unpack(buffer), tensors, strict=True):
            view.copy_(tensor)
        return buffer

    def unpack(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in a buffer, as views of it."""
        views = []
        for shape, dtype, start in zip(self.shapes, self.dtypes, self.offsets, strict=False):
            size = math.prod(shape) * dtype.itemsize
            views.append(buffer[start : start + size].view(dtype).view(shape))
        return views

    def of_gradients(self) -> "Layout":
        """That of the gradients: of the floating point tensors alone."""
        kept = [k for k, dtype in enumerate(self.dtypes) if dtype.is_floating_point]
        return Layout(tuple(self.shapes[k] for k in kept), tuple(self.dtypes[k] for k in kept))


@attrs.frozen(eq=False)
class Blocks:
    """This rank's block, and the layout of everybody's.

    A tensor that is in the tree several times (parts of ``combined`` share steps) travels once.

    Attributes:
        tensors: of this rank's tree, each once.
        layouts: of every rank.
        steps: L of every rank, before `prepare_y`.
        wanted: whether any rank wants gradients of y.
    """

    tensors: list[Tensor]
    layouts: list[Layout]
    steps: list[int]
    wanted: bool
    _spec: TreeSpec
    _places: list[int]

    @classmethod
    def meet(cls, tree: Tree, steps: int) -> "Blocks":
        """Tell everybody L and the shapes of this rank's tree, and hear theirs.

        Raises:
            ClipseqError: on every rank, where the trees are not built alike.
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
        require_agreement([row[0] for row in digests], "the structure of what is compared")
        wants = any(tensor.requires_grad for tensor in tensors) and torch.is_grad_enabled()
        numbers = [int(wants), steps, *(n for tensor in tensors for n in tensor.shape)]
        told = share(numbers, device)
        layouts = []
        for _, _, *sizes in told:
            left = iter(sizes)
            shapes = tuple(tuple(next(left) for _ in tensor.shape) for tensor in tensors)
            layouts.append(Layout(shapes, dtypes))
        wanted = any(flag for flag, *_ in told)
        return cls(tensors, layouts, [row[1] for row in told], wanted, spec, places)

    def tree(self, tensors: Sequence[Tensor]) -> Tree:
        """The tree of a block's tensors."""
        return tree_unflatten([tensors[place] for place in self._places], self._spec)
