"""The order of the clips is a function of the seed and the batch number, and of nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq.training.stream import OwnRows, ShuffledBatches

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
