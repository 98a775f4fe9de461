"""The batches are a function of the seed and the batch number, and of nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq import CLIP
from clipseq.augment import AugmentConfig
from clipseq.data import Clip, MapDataset
from clipseq.training.stream import (
    OwnRows,
    ShuffledBatches,
    training_batches,
    validation_batches,
)

sizes = st.tuples(st.integers(2, 30), st.integers(2, 12), st.integers(1, 20))


@given(sizes, st.integers(0, 5), st.data())
def test_a_stream_picked_up_later_is_the_rest_of_it(size, seed, data):
    items, batch_size, batches = size
    start = data.draw(st.integers(0, batches))
    whole = list(ShuffledBatches(items, batch_size, batches, seed=seed))
    later = ShuffledBatches(items, batch_size, batches, seed=seed, start=start)
    assert list(later) == whole[start:]
    assert len(later) == len(whole) == batches


@given(sizes, st.integers(0, 5))
def test_an_epoch_meets_no_clip_twice_and_every_batch_is_full(size, seed):
    items, batch_size, batches = size
    stream = ShuffledBatches(items, batch_size, batches, seed=seed)
    per_epoch = max(1, items // batch_size)
    assert stream.per_epoch == per_epoch
    given_batches = list(stream)
    for start in range(0, batches, per_epoch):
        met = [i for batch in given_batches[start : start + per_epoch] for i in batch]
        assert len(set(met)) == len(met)
        assert set(met) <= set(range(items))
    assert {len(batch) for batch in given_batches} == {min(batch_size, items)}


def test_epochs_and_seeds_differ():
    first = list(ShuffledBatches(40, 40, 2, seed=0))
    assert first[0] != first[1]
    assert list(ShuffledBatches(40, 40, 2, seed=1)) != first


def test_one_clip_is_too_few():
    with pytest.raises(ValueError, match="items must be at least 2 .* got 1"):
        ShuffledBatches(1, 4, 1, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 2 .* got 1"):
        ShuffledBatches(4, 1, 1, seed=0)


@given(st.integers(1, 6), st.lists(st.integers(6, 20), max_size=4))
def test_the_processes_rows_are_the_batch_in_nearly_equal_parts(size, batch_sizes):
    batches = [list(range(k, k + rows)) for k, rows in enumerate(batch_sizes)]
    parts = [list(OwnRows(batches, rank, size)) for rank in range(size)]
    for batch, *shares in zip(batches, *parts, strict=True):
        assert [row for share in shares for row in share] == batch
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
    assert {len(OwnRows(batches, rank, size)) for rank in range(size)} == {len(batches)}


def test_every_process_needs_a_row():
    with pytest.raises(ValueError, match="a clip for each of 3 processes, got 2"):
        list(OwnRows([[4, 7]], 0, 3))
    with pytest.raises(ValueError, match=r"rank must be in \[0, size=2\), got 2"):
        OwnRows([[4, 7]], 2, 2)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return MapDataset.from_clips(
        [
            Clip(
                id=str(k),
                signal={"mel": rng.normal(size=(9, 20 + k)).astype(np.float32)},
                caption=f"caption {k}",
                actions=("a",),
                spans=((3, 15),),
            )
            for k in range(11)
        ],
        modality="audio",
    )


@pytest.fixture(scope="module")
def model():
    signal = {"name": "audio", "views": {"mel": 9}, "patch_frames": 4}
    return CLIP(signal, transformer_width=8, transformer_layers=1, transformer_heads=2)


def maps_of(batches):
    """Return id -> map without padding, for each batch."""
    return [
        {
            clip: (batch["text"][row], batch["audio"]["mel"][row, :, : batch["audio_lengths"][row]])
            for row, clip in enumerate(batch["ids"])
        }
        for batch in batches
    ]


def batches_of(clips, model, augment=None, *, seed=4, start=0, rank=0, size=1, workers=0):
    stream = ShuffledBatches(len(clips), 4, 6, seed=seed, start=start)
    augment = AugmentConfig() if augment is None else augment
    return maps_of(
        training_batches(clips, stream, model, augment, rank=rank, size=size, workers=workers)
    )


def assert_same(batches, others):
    assert [batch.keys() for batch in batches] == [other.keys() for other in others]
    for batch, other in zip(batches, others, strict=True):
        for clip, (caption, values) in batch.items():
            assert caption == other[clip][0]
            assert np.array_equal(values, other[clip][1])


def test_augmented_batches_are_the_same_in_any_process_and_after_a_resume(clips, model):
    whole = batches_of(clips, model)
    parts = [batches_of(clips, model, rank=rank, size=3) for rank in range(3)]
    assert_same([a | b | c for a, b, c in zip(*parts, strict=True)], whole)
    assert_same(batches_of(clips, model, start=3), whole[3:])
    assert_same(batches_of(clips, model, start=1, rank=1, size=2, workers=2),
                batches_of(clips, model, rank=1, size=2)[1:])  # fmt: skip


def test_a_clip_is_augmented_anew_in_every_epoch_and_by_every_seed(clips, model):
    whole = [batch for seed in (4, 5) for batch in batches_of(clips, model, seed=seed)]
    seen = [values for batch in whole for clip, (_, values) in batch.items() if clip == "3"]
    assert len(seen) > 3
    for k, values in enumerate(seen):
        assert not any(np.array_equal(values, other) for other in seen[:k])


def test_strength_0_and_validation_leave_the_clips_alone(clips, model):
    plain = batches_of(clips, model, AugmentConfig(strength=0.0))
    for batches in (plain, maps_of(validation_batches(clips, 4, model, 0, 1))):
        for batch in batches:
            for clip, (_, values) in batch.items():
                assert np.array_equal(values, clips[int(clip)].signal["mel"])
