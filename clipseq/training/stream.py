"""The order of the training clips: one stream of batches, which does not change on resume."""

import signal
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING

import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler

from clipseq.data import Clip, MapDataset
from clipseq.evaluation.encoding import collate_for

if TYPE_CHECKING:
    from clipseq.model import CLIP


class ShuffledBatches(Sampler[list[int]]):
    """Batches of clip indices, epoch after epoch; each epoch is shuffled anew.

    Batch k depends only on (`items`, `batch_size`, `seed`, k), so a run that resumes at batch k
    gets the same batches as an uninterrupted run. An epoch leaves out the clips that do not fill a
    batch (different ones each time), because a contrastive loss over a smaller batch is a different
    loss. A set smaller than `batch_size` is one batch.

    Args:
        items: number of clips.
        batch_size: clips in a batch.
        batches: number of batches of the whole run, which is also the length, whatever `start` is.
        seed: random seed for shuffling.
        start: the first batch to yield.

    Raises:
        ValueError: fewer than two clips, or a size that is not positive.
    """

    def __init__(
        self, items: int, batch_size: int, batches: int, *, seed: int, start: int = 0
    ) -> None:
        if items < 2:
            raise ValueError(f"items must be at least 2 for contrastive training, got {items}")
        if batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2 for contrastive training, got {batch_size}"
            )
        self.items = items
        self.batch_size = min(batch_size, items)
        self.batches = batches
        self.seed = seed
        self.start = start

    @property
    def per_epoch(self) -> int:
        """Number of batches in one pass over the clips."""
        return self.items // self.batch_size

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        shuffled_for, order = -1, torch.empty(0)
        for batch in range(self.start, self.batches):
            epoch, place = divmod(batch, self.per_epoch)
            if epoch != shuffled_for:
                order = torch.randperm(self.items, generator=_generator(self.seed, epoch))
                shuffled_for = epoch
            yield order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class OwnRows(Sampler[list[int]]):
    """The part of each batch that one of several processes takes.

    Process r of W takes the rows from ``r·B // W`` to ``(r + 1)·B // W`` of a batch of B. The
    parts, in the order of the ranks, make up the batch, so the clips that a step compares do not
    depend on the number of processes. The sizes of the parts differ by one at most.

    Args:
        batches: the batches of the whole run, such as `ShuffledBatches`.
        rank: r.
        size: W.

    Raises:
        ValueError: while iterating, for a batch with fewer rows than there are processes.
    """

    def __init__(self, batches: Iterable[list[int]], rank: int, size: int) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank must be in [0, size={size}), got {rank}")
        self.batches = batches
        self.rank = rank
        self.size = size

    def __len__(self) -> int:
        assert isinstance(self.batches, Sized)
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            rows = len(batch)
            if rows < self.size:
                raise ValueError(
                    f"a batch must have a clip for each of {self.size} processes, got {rows}; "
                    "start fewer processes"
                )
            yield batch[self.rank * rows // self.size : (self.rank + 1) * rows // self.size]


def training_batches(
    clips: MapDataset, stream: ShuffledBatches, model: "CLIP", rank: int, size: int, workers: int
) -> "DataLoader[Clip]":
    """Load the rows of the stream's batches that process `rank` of `size` takes.

    Args:
        clips: the clips of the stream.
        stream: the batches of the whole run.
        model: the model; views that it does not take are left out.
        rank: rank of this process.
        size: number of processes.
        workers: processes that load ahead; 0 loads in this process.
    """
    return DataLoader(
        clips,
        batch_sampler=_own(stream, rank, size),
        collate_fn=collate_for(model, clips),
        num_workers=workers,
        worker_init_fn=_ignore_interrupts if workers else None,
    )


def validation_batches(
    clips: MapDataset | None, batch_size: int, model: "CLIP", rank: int, size: int
) -> "DataLoader[Clip] | None":
    """Load the rows of the validation batches that process `rank` of `size` takes.

    An incomplete last batch is left out: the loss depends on the number of clips compared.
    """
    if clips is None:
        return None
    whole = BatchSampler(SequentialSampler(clips), min(batch_size, len(clips)), drop_last=True)
    return DataLoader(
        clips, batch_sampler=_own(whole, rank, size), collate_fn=collate_for(model, clips)
    )


def _own(batches: Sampler[list[int]], rank: int, size: int) -> Sampler[list[int]]:
    return OwnRows(batches, rank, size) if size > 1 else batches


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the group; only the training process handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _generator(seed: int, epoch: int) -> torch.Generator:
    # Not seed + epoch: the second epoch of seed 0 would be the first of seed 1.
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (2**63))
