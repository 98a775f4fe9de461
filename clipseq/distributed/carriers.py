"""Carriers, which bring the blocks of y to every rank, and their gradients back to the owners."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from clipseq.distributed import traffic
from clipseq.distributed.blocks import Blocks, Layout
from clipseq.distributed.world import World

Visit = Callable[[int, list[Tensor]], object]
"""A function that is called once with each rank's block, starting with this rank's own."""

Differentiate = Callable[[int, list[Tensor]], list[Tensor]]
"""A `Visit` that returns this rank's part of the gradients of the floating point tensors."""


class Carrier(Protocol):
    """A way of moving blocks between ranks."""

    def visit(self, work: Visit) -> None:
        """Call `work` with every block."""

    def collect(self, work: Differentiate) -> list[Tensor]:
        """Call `work` with every block again, and return the gradients of this rank's block.

        They are the sum of the parts that the `work` of all ranks returns for that block.
        """


class Ring:
    """A ring: each rank works on a block while it sends that block to the next rank.

    At step s, a rank holds the block of the rank s places before it and the block that is arriving,
    never more. A block takes W - 1 hops among W ranks. Its gradients start at the first rank after
    the owner and follow the block. Each rank adds its part, and the last of their W - 1 hops leads
    back to the owner.
    """

    def __init__(self, world: World, blocks: Blocks) -> None:
        self._world = world
        self._blocks = blocks
        self._next = (world.rank + 1) % world.size
        self._previous = (world.rank - 1) % world.size

    def _pass_on(self, buffer: Tensor, size: int, tag: int) -> tuple[Tensor, list[dist.Work]]:
        """Send `buffer` to the next rank, and receive `size` bytes from the previous one."""
        incoming = buffer.new_empty(size)
        return incoming, dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, buffer, self._next, tag=tag),
                dist.P2POp(dist.irecv, incoming, self._previous, tag=tag),
            ]
        )

    def _steps(self, work: Callable[[int, int, list[Tensor]], object]) -> None:
        world, layouts = self._world, self._blocks.layouts
        tensors = self._blocks.tensors
        buffer = layouts[world.rank].pack(tensors)
        for step in range(world.size):
            owner = (world.rank - step) % world.size
            last = step == world.size - 1
            coming = (owner - 1) % world.size
            pending: list[dist.Work] = []
            if not last:
                incoming, pending = self._pass_on(buffer, layouts[coming].offsets[-1], tag=0)
                traffic.add(blocks=len(buffer))
            traffic.note_held(world.sizes[owner] + (0 if last else world.sizes[coming]))
            work(step, owner, tensors)
            for message in pending:
                message.wait()
            if not last:
                buffer, tensors = incoming, layouts[coming].unpack(incoming)

    def visit(self, work: Visit) -> None:
        self._steps(lambda step, owner, tensors: work(owner, tensors))

    def collect(self, work: Differentiate) -> list[Tensor]:
        world = self._world
        layouts = [layout.for_gradients() for layout in self._blocks.layouts]
        own: list[Tensor] = []
        incoming: Tensor | None = None
        pending: list[dist.Work] = []

        def at(step: int, owner: int, tensors: list[Tensor]) -> None:
            nonlocal own, incoming, pending
            gradients = work(owner, tensors)
            if step == 0:
                own = gradients
                return
            for message in pending:
                message.wait()
            if incoming is not None:
                # Add the parts of the ranks that worked on this block before.
                gradients = _add(gradients, layouts[owner].unpack(incoming))
            outgoing = layouts[owner].pack(gradients)
            # The gradients of the preceding block arrive next; after the last step, our own.
            coming = (owner - 1) % world.size
            incoming, pending = self._pass_on(outgoing, layouts[coming].offsets[-1], tag=1)
            traffic.add(gradients=len(outgoing))

        self._steps(at)
        for message in pending:
            message.wait()
        if incoming is not None:
            own = _add(own, layouts[world.rank].unpack(incoming))
        return own


class AllGather:
    """An all-gather: every rank gets all blocks at once and keeps them until backward is done."""

    def __init__(self, world: World, blocks: Blocks) -> None:
        self._world = world
        self._blocks = blocks
        self._buffers: list[Tensor] = []

    def _gather(self) -> list[Tensor]:
        if not self._buffers:
            layouts = self._blocks.layouts
            longest = max(layout.offsets[-1] for layout in layouts)
            mine = layouts[self._world.rank].pack(self._blocks.tensors)
            padded = mine.new_zeros(longest)
            padded[: len(mine)] = mine
            buffers = [torch.empty_like(padded) for _ in layouts]
            dist.all_gather(buffers, padded)
            traffic.add(blocks=longest * (self._world.size - 1))
            traffic.note_held(self._world.total)
            self._buffers = buffers
        return self._buffers

    def visit(self, work: Visit) -> None:
        for owner, tensors in self._all():
            work(owner, tensors)

    def collect(self, work: Differentiate) -> list[Tensor]:
        # Clone: dist.reduce adds in place, and two leaves may share one gradient tensor.
        gradients = {
            owner: [part.clone() for part in work(owner, tensors)] for owner, tensors in self._all()
        }
        for owner in range(self._world.size):
            for gradient in gradients[owner]:
                dist.reduce(gradient, owner)
                if owner != self._world.rank:
                    traffic.add(gradients=gradient.nbytes)
        self._buffers = []
        return gradients[self._world.rank]

    def _all(self) -> list[tuple[int, list[Tensor]]]:
        world = self._world
        buffers = self._gather()
        ranks = [(world.rank - step) % world.size for step in range(world.size)]
        layouts: list[Layout] = self._blocks.layouts
        return [(owner, layouts[owner].unpack(buffers[owner])) for owner in ranks]


def _add(some: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(some, others, strict=True)]
