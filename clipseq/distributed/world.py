"""The world: the ranks whose items make up one batch, and the reductions over their rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from clipseq.engine.gradients import first_derivative_only
from clipseq.errors import ClipseqError


def count_processes() -> int:
    """Count the processes that share the batch; 1 if torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class World(NamedTuple):
    """The ranks whose items make up the batch, which is ordered by rank.

    Attributes:
        sizes: number of items of each rank.
        rank: the rank of this process.
        extras: number of extra y of each rank, which match no x; empty if there are none.
    """

    sizes: tuple[int, ...]
    rank: int
    extras: tuple[int, ...] = ()

    @classmethod
    def alone(cls, items: int, extras: int = 0) -> "World":
        """Return the world in which this process's items are the whole batch."""
        return cls((items,), 0, (extras,) if extras else ())

    @classmethod
    def meet(
        cls,
        items: int,
        device: torch.device,
        *,
        grouped: bool,
        extras: int = 0,
        terms: Mapping[str, object] | None = None,
    ) -> "World":
        """Exchange the numbers of items and of extra y with all processes of the default group.

        Args:
            items: number of items of this process.
            device: device of the messages.
            grouped: whether this process passes `groups`.
            extras: number of extra y of this process.
            terms: what all processes must agree about, such as options, by name.

        Raises:
            ClipseqError: some processes pass `groups` and others do not, a process has no item, or
                their terms differ; raised in all of them.
        """
        if count_processes() == 1:
            return cls.alone(items, extras)
        text = json.dumps({name: str(value) for name, value in (terms or {}).items()})
        digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
        rows = share([items, int(grouped), extras, digest], device)
        if len({row[3] for row in rows}) > 1:
            told = [json.loads(each) for each in _share_text(text, device)]
            raise ClipseqError(difference(told))
        require_agreement([row[1] for row in rows], "groups, passed (1) or not (0)")
        sizes = tuple(row[0] for row in rows)
        if 0 in sizes:
            raise ClipseqError(
                f"every process must have at least one item of its own, got {list(sizes)} by rank"
            )
        added = tuple(row[2] for row in rows)
        return cls(sizes, dist.get_rank(), added if any(added) else ())

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.sizes)

    @property
    def total(self) -> int:
        """N, the number of items of the global batch."""
        return sum(self.sizes)

    @property
    def columns(self) -> "World":
        """The world of the y: each rank has its own, and after them its extra ones."""
        if not self.extras:
            return self
        sizes = tuple(size + more for size, more in zip(self.sizes, self.extras, strict=True))
        return World(sizes, self.rank)

    def put_extras_last(self, scores: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        """Move the columns of extra y, which follow those of their rank's own y, to the end."""
        if not self.extras or self.size == 1:
            return scores
        parts = scores.split(
            [n for pair in zip(self.sizes, self.extras, strict=True) for n in pair], 1
        )
        return torch.cat([*parts[::2], *parts[1::2]], dim=1)

    def span(self, rank: int) -> slice:
        """Return the positions of a rank's items in the batch."""
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])

    def gather(self, numbers: Int[Tensor, "B"]) -> Int[Tensor, "N"]:
        """Collect the integers of all ranks, one for each item of the global batch."""
        if self.size == 1:
            return numbers
        longest = max(self.sizes)
        mine = numbers.new_zeros(longest)
        mine[: len(numbers)] = numbers
        rows = [torch.empty_like(mine) for _ in self.sizes]
        dist.all_gather(rows, mine)
        return torch.cat([row[:size] for row, size in zip(rows, self.sizes, strict=True)])

    def logsumexp(self, logits: Float[Tensor, "B N"]) -> Float[Tensor, "N"]:
        """Return the log-sum-exp of each column, over the rows of all processes.

        Every process may use the result; its gradient is summed over the processes.
        """
        if self.size == 1:
            return torch.logsumexp(logits, dim=0)
        return _ColumnLogSumExp.apply(logits)

    def sum(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Sum a loss over processes; every process gets the same value.

        The gradient is multiplied by the number of processes. Once DDP or FSDP has averaged them,
        gradients are those of a single process with the whole batch.
        """
        return value if self.size == 1 else _Sum.apply(value, self.size)


def share(numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """Exchange the same number of integers from each rank; return those of every rank."""
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    rows = [torch.empty_like(mine) for _ in range(count_processes())]
    dist.all_gather(rows, mine)
    return torch.stack(rows).tolist()


def _share_text(text: str, device: torch.device) -> list[str]:
    """Exchange one text from each rank; return those of every rank."""
    data = text.encode()
    lengths = [row[0] for row in share([len(data)], device)]
    mine = torch.zeros(max(lengths), dtype=torch.uint8)
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    mine = mine.to(device)
    rows = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(rows, mine)
    return [
        bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths, strict=True)
    ]


def difference(terms: Sequence[Mapping[str, str]]) -> str:
    """Return a sentence that names the terms that differ between the ranks."""
    names = dict.fromkeys(name for own in terms for name in own)
    differences = []
    for name in names:
        values = [own.get(name, "none") for own in terms]
        if len(set(values)) > 1:
            differences.append(f"{name}, got {' and '.join(dict.fromkeys(values))}")
    return (
        f"the processes must agree about {'; about '.join(differences)}; make the same calls with "
        "the same options, versions and plugins in every process"
    )


def require_agreement(numbers: list[int], subject: str) -> None:
    """Raise ClipseqError in every process unless all gave the same number."""
    if len(set(numbers)) > 1:
        raise ClipseqError(
            f"the processes must agree about {subject}, got {numbers} by rank; make the same calls "
            "with the same options in every process"
        )


class _ColumnLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        top = logits.amax(0)
        dist.all_reduce(top, dist.ReduceOp.MAX)
        sums = (logits - top).exp_().sum(0)
        dist.all_reduce(sums)
        result = sums.log_().add_(top)
        ctx.save_for_backward(logits, result)
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        logits, result = ctx.saved_tensors
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return (logits - result).exp_().mul_(grad)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, size: int) -> Tensor:
        ctx.size = size
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.size, None
