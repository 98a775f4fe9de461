"""The scores of this rank's x with the y of all ranks: its rows of the (N, N) score matrix."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from clipseq.distributed import traffic
from clipseq.distributed.blocks import Blocks
from clipseq.distributed.carriers import AllGather, Carrier, Ring
from clipseq.distributed.world import World
from clipseq.engine.gradients import first_derivative_only
from clipseq.engine.tiling import Tree

Gather = Literal["ring", "all"] | None
"""The way in which the y of other ranks arrive: one by one, all at once, or (None) not at all."""

GATHERS = ("ring", "all", None)

Compare = Callable[[Tree, Tree, int], Tensor]
"""A function of x, a block of y (two trees) and the block's L that returns (b, c) scores."""


def score_rows(
    compare: Compare,
    x: Tree,
    y: Tree,
    world: World,
    *,
    steps: int = 1,
    gather: Literal["ring", "all"] = "ring",
    parameters: tuple[Tensor, ...] = (),
) -> Float[Tensor, "B N"]:
    """Compare this rank's x with the y of every rank, in the order of the batch.

    Every rank must call it. Forward keeps only this rank's x and y. In backward, the blocks arrive
    again (with "all", they have been kept), the pairs are compared again, and the gradients of y
    are sent to their owners.

    Args:
        compare: scores every pair of a block, from trees of tensors with the batch first.
        x: the tree of this rank's x.
        y: the tree of this rank's y, with the same structure on every rank; sizes may differ.
        world: the ranks that take part.
        steps: L of this rank's y, for `compare`.
        gather: "ring" or "all".
        parameters: the other tensors that `compare` depends on and that need gradients.

    Raises:
        ClipseqError: the y of the ranks differ in structure; raised on every rank.
    """
    x_leaves, x_spec = tree_flatten(x)
    blocks = Blocks.meet(y, steps)
    carrier: Carrier = (Ring if gather == "ring" else AllGather)(world, blocks)
    job = _Job(compare, world, blocks, carrier, x_spec, len(x_leaves))
    scores: Tensor = _Scores.apply(job, *x_leaves, *blocks.tensors, *parameters)
    return scores


@attrs.frozen(eq=False)
class _Job:
    compare: Compare
    world: World
    blocks: Blocks
    carrier: Carrier
    x_spec: TreeSpec
    x_count: int


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, *tensors: Tensor) -> Tensor:
        ctx.job = job
        ctx.save_for_backward(*tensors)
        ctx.random = _random_state(tensors[0].device)
        x = tree_unflatten(list(tensors[: job.x_count]), job.x_spec)
        parts: dict[int, Tensor] = {}

        def score(owner: int, leaves: list[Tensor]) -> None:
            parts[owner] = job.compare(x, job.blocks.tree(leaves), job.blocks.steps[owner])
            traffic.add(pairs=parts[owner].numel())

        job.carrier.visit(score)
        return torch.cat([parts[owner] for owner in range(job.world.size)], dim=1)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        job: _Job = ctx.job
        y_end = job.x_count + len(job.blocks.tensors)
        saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        x_leaves = [
            leaf.detach().requires_grad_(wanted)
            for leaf, wanted in zip(saved[: job.x_count], needed, strict=False)
        ]
        x = tree_unflatten(x_leaves, job.x_spec)
        parameters = [
            parameter
            for parameter, wanted in zip(saved[y_end:], needed[y_end:], strict=True)
            if wanted
        ]
        ours = [leaf for leaf in x_leaves if leaf.requires_grad] + parameters
        totals: list[Tensor | None] = [None] * len(ours)

        def differentiate(owner: int, leaves: list[Tensor]) -> list[Tensor]:
            wanted = job.blocks.wanted
            leaves = [
                leaf.detach().requires_grad_(wanted and leaf.is_floating_point()) for leaf in leaves
            ]
            theirs = [leaf for leaf in leaves if leaf.requires_grad]
            with torch.enable_grad():
                scores = job.compare(x, job.blocks.tree(leaves), job.blocks.steps[owner])
            traffic.add(pairs_again=scores.numel())
            found = torch.autograd.grad(
                scores,
                [*ours, *theirs],
                grad[:, job.world.span(owner)],
                allow_unused=True,
            )
            for k, gradient in enumerate(found[: len(ours)]):
                total = totals[k]
                if total is None:
                    totals[k] = gradient
                elif gradient is not None:
                    totals[k] = total + gradient
            return [
                torch.zeros_like(leaf) if gradient is None else gradient.contiguous()
                for leaf, gradient in zip(theirs, found[len(ours) :], strict=True)
            ]

        y_gradients: list[Tensor] = []
        # Blocks arrive in the same order as in forward, so dropout draws the same numbers.
        with _random_state_of(ctx.random, grad.device):
            if job.blocks.wanted:
                y_gradients = job.carrier.collect(differentiate)
            else:
                job.carrier.visit(differentiate)
        ours_left, theirs_left = iter(totals), iter(y_gradients)
        result: list[Tensor | None] = []
        for k, wanted in enumerate(needed):
            if job.x_count <= k < y_end:
                gradient = (
                    next(theirs_left)
                    if job.blocks.wanted and saved[k].is_floating_point()
                    else None
                )
                result.append(gradient if wanted else None)
            else:
                result.append(next(ours_left) if wanted else None)
        return None, *result


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(
        device
    ) if device.type == "cuda" else None


@contextmanager
def _random_state_of(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    cpu, cuda = state
    with torch.random.fork_rng([device] if cuda is not None else []):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield
