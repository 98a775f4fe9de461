"""Batches of clips hold every clip whole, then zeros, with one key per signal."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from clipseq.data import Clip, MapDataset, collate


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_a_batch_holds_every_clip_and_zeros_after_it(lengths):
    clips = [
        Clip(id=str(i), signal={"a": np.full((2, n), i + 1.0, np.float32)}, caption=f"c{i}")
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


def test_it_serves_a_data_loader():
    clips = [
        Clip(id=str(i), signal={"a": np.ones((2, i + 1), np.float16)}, caption="c")
        for i in range(5)
    ]
    loader = DataLoader(MapDataset.from_clips(clips), batch_size=2, collate_fn=collate)
    assert [tuple(b["radar"]["a"].shape) for b in loader] == [(2, 2, 2), (2, 2, 4), (1, 2, 5)]


@pytest.mark.parametrize("caption", ["c", ""])
def test_a_batch_of_pairs_has_both_signals_by_name_and_captions_if_there_are_any(caption):
    clips = [
        Clip(
            id=str(n),
            signal={"a": np.full((2, n), 1.0, np.float32)},
            paired={"a": np.full((3, 5 - n), 2.0, np.float32)},
            caption=caption,
        )
        for n in (1, 3)
    ]
    batch = collate(clips, modality="audio", paired_modality="motion")
    keys = {"audio", "audio_lengths", "motion", "motion_lengths", "ids"}
    assert batch.keys() == (keys | {"text"} if caption else keys)
    assert batch["audio_lengths"].tolist() == [1, 3]
    assert batch["motion_lengths"].tolist() == [4, 2]
    assert batch["motion"]["a"].shape == (2, 3, 4)
    assert batch["audio"]["a"][0, 0].tolist() == [1, 0, 0]
    assert batch["motion"]["a"][1, 2].tolist() == [2, 2, 0, 0]


def test_a_second_signal_and_its_name_come_together():
    one = Clip(id="1", signal={"a": np.ones((1, 1))}, caption="c")
    two = Clip(id="2", signal={"a": np.ones((1, 1))}, paired={"b": np.ones((1, 1))})
    for clips, name in (([two], None), ([one], "motion"), ([two, one], "motion")):
        with pytest.raises(ValueError, match="paired_modality must name the second signal"):
            collate(clips, paired_modality=name)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        collate([])
