"""The training clips in order, augmented: one stream of batches, which resuming does not change."""

import signal
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from clipseq.augment import AugmentConfig, augment_clip, clip_generator, views_of_channels
from clipseq.data import Clip, MapDataset
from clipseq.retrieval.sides import collate_for
from clipseq.training.launch.interruption import SIGNALS

if TYPE_CHECKING:
    from clipseq.model import CLIP

LOOKED_AT = 32
"""Number of clips by which to decide whether the rows of a view are channels."""


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


class NumberedRows(Sampler[list[tuple[int, int]]]):
    """The same batches, with (number of the batch in the run, index) in place of each index.

    Args:
        batches: batches of indices, such as `OwnRows`.
        start: number of the first batch.
    """

    def __init__(self, batches: Sampler[list[int]], start: int) -> None:
        self.batches = batches
        self.start = start

    def __len__(self) -> int:
        assert isinstance(self.batches, Sized)
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number, batch in enumerate(self.batches, self.start):
            yield [(number, index) for index in batch]


class AugmentedClips(Dataset[Clip]):
    """The clips of a data set, augmented anew in every batch.

    ``clips[number, index]`` depends only on the data set, the configuration, the seed, and the two
    numbers, so that a resumed run, and any number of processes and workers, train on the same.

    Args:
        clips: the training clips.
        config: the strengths of the augmentations.
        seed: random seed of the run.
    """

    def __init__(self, clips: MapDataset, config: AugmentConfig, seed: int) -> None:
        self.clips = clips
        self.config = config
        self.seed = seed
        if config.channels is None:
            looked_at = [clips[index] for index in range(min(LOOKED_AT, len(clips)))]
            signals = [maps for clip in looked_at for maps in (clip.signal, clip.paired)]
            self.config = attrs.evolve(config, channels=tuple(sorted(views_of_channels(signals))))

    def __getitem__(self, key: tuple[int, int]) -> Clip:
        batch, index = key
        rng = clip_generator(self.seed, batch, index)
        return augment_clip(self.clips[index], self.config, rng)


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
    clips: MapDataset,
    stream: ShuffledBatches,
    model: "CLIP",
    augment: AugmentConfig,
    *,
    rank: int,
    size: int,
    workers: int,
) -> "DataLoader[Clip]":
    """Load the rows of the stream's batches that process `rank` of `size` takes, and augment them.

    Args:
        clips: the clips of the stream.
        stream: the batches of the whole run.
        model: the model; views that it does not take are left out.
        augment: the strengths of the augmentations.
        rank: rank of this process.
        size: number of processes.
        workers: processes that load ahead; 0 loads in this process.
    """
    return DataLoader(
        AugmentedClips(clips, augment, stream.seed),
        batch_sampler=NumberedRows(_own(stream, rank, size), stream.start),
        collate_fn=collate_for(model, clips),
        num_workers=workers,
        worker_init_fn=_ignore_interrupts if workers else None,
    )


@contextmanager
def ending_workers(batches: "DataLoader[Any]") -> Iterator[Iterator[dict[str, Any]]]:
    """Iterate over `batches`, and end their workers with the block.

    Torch ends them when the iterator is garbage, which may be much later: the traceback of an
    error holds it.
    """
    upcoming: Any = iter(batches)
    try:
        yield upcoming
    finally:
        end = getattr(upcoming, "_shutdown_workers", None)  # missing without workers
        if end is not None:
            end()


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
    # Ctrl-C and the end of a terminal reach every process of the group; only the training process
    # handles them.
    for signum in SIGNALS:
        if signum != signal.SIGTERM:  # with which torch ends a worker
            signal.signal(signum, signal.SIG_IGN)


def _generator(seed: int, epoch: int) -> torch.Generator:
    # Not seed + epoch: the second epoch of seed 0 would be the first of seed 1.
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (2**63))
