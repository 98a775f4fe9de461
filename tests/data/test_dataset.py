"""A data set in memory, whether read from a file or made from clips."""

import numpy as np
import pytest
import torch
from example_clips import CLASSES, PAIRS, RICH, assert_same, clip, pair

from clipseq.data import MapDataset, write_dataset
from clipseq.errors import DataError


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", ["memory", "folder", "npz"])
def test_changing_a_clip_leaves_the_dataset_unchanged(tmp_path, dtype, place):
    maps = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    clips = [clip(f"{i}", signal={"a": m}, paired={"b": m}) for i, m in enumerate(maps)]
    if place == "memory":
        read = MapDataset.from_clips(clips, paired_modality="motion")
    elif place == "folder":
        read = MapDataset(write_dataset(tmp_path / "set", clips, paired_modality="motion"))
    else:
        arrays = {"a": maps, "paired/b": maps, "paired_modality": "motion"}
        np.savez(tmp_path / "set.npz", **arrays)
        read = MapDataset(tmp_path / "set.npz")
    expected = np.arange(24).reshape(2, 3, 4)
    for i in range(2):
        torch.from_numpy(read[i].signal["a"]).zero_()
        torch.from_numpy(read[i].paired["b"]).zero_()
        np.testing.assert_array_equal(read[i].signal["a"], expected[i])
        np.testing.assert_array_equal(read[i].paired["b"], expected[i])
        assert read[i].signal["a"].dtype == read[i].paired["b"].dtype == np.float32


@pytest.mark.parametrize("index", [slice(0, 2), "a", 1.0, (0, 1), [0, 1], None])
def test_an_index_of_several_clips_is_refused_with_the_alternative(unchecked_signatures, index):
    read = MapDataset.from_clips(RICH, class_captions=CLASSES)
    with pytest.raises(
        TypeError, match=r"index must be a whole number, got .*dataset\.subset\('train'\)"
    ):
        read[index]
    assert [read[i].id for i in (np.int64(1), -1, torch.tensor(0))] == ["b", "d", "a"]
    with pytest.raises(IndexError):
        read[4]


def test_a_dataset_of_pairs_names_both_signals_and_keeps_the_names_in_subsets():
    dataset = MapDataset.from_clips(
        PAIRS, modality="audio", paired_modality="motion", frame_rate=100.0, paired_frame_rate=30.0
    )
    for part in (dataset, dataset.subset("test")):
        assert (part.modality, part.paired_modality) == ("audio", "motion")
        assert (part.frame_rate, part.paired_frame_rate) == (100, 30)
        assert part.views == {"range_time": 4, "doppler_time": 3}
        assert part.paired_views == {"joints": 6, "range_time": 2}
        assert part.modalities == ("audio", "motion", "text")
    assert_same(PAIRS[1], dataset.subset("test")[0])
    assert "audio={'range_time': 4, 'doppler_time': 3}, motion={'joints': 6" in repr(dataset)


def test_pairs_need_no_caption_and_one_signal_is_radar_by_default():
    silent = MapDataset.from_clips([pair(caption="")], modality="audio", paired_modality="motion")
    assert silent.modalities == ("audio", "motion")
    assert silent.captions == [""]
    single = MapDataset.from_clips([clip()])
    assert single.modalities == ("radar", "text")
    assert (single.paired_modality, single.paired_views) == (None, {})


def test_a_split_without_clips_is_an_error():
    with pytest.raises(DataError, match=r"{'train': 1}.*got 'val'"):
        MapDataset.from_clips([clip()]).subset("val")


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nowhere, which does not exist"):
        MapDataset(tmp_path / "nowhere")
