import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from clipseq.data import Clip, MapDataset, collate


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_a_batch_holds_every_clip_and_zero_behind_it(lengths):
    clips = [
        Clip(id=str(i), radar={"a": np.full((2, n), i + 1.0, np.float32)}, caption=f"c{i}")
        for i, n in enumerate(lengths)
    ]
    batch = collate(clips)
    assert batch["radar_lengths"].tolist() == lengths
    assert batch["radar_lengths"].dtype == torch.int64
    assert batch["text"] == [c.caption for c in clips]
    assert batch["ids"] == [c.id for c in clips]
    assert batch["radar"]["a"].shape == (len(clips), 2, max(lengths))
    assert batch["radar"]["a"].dtype == torch.float32
    for i, n in enumerate(lengths):
        assert (batch["radar"]["a"][i, :, :n] == i + 1).all()
        assert (batch["radar"]["a"][i, :, n:] == 0).all()


def test_it_serves_a_loader():
    clips = [
        Clip(id=str(i), radar={"a": np.ones((2, i + 1), np.float16)}, caption="c") for i in range(5)
    ]
    loader = DataLoader(MapDataset.from_clips(clips), batch_size=2, collate_fn=collate)
    assert [tuple(b["radar"]["a"].shape) for b in loader] == [(2, 2, 2), (2, 2, 4), (1, 2, 5)]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        collate([])
