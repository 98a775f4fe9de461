"""Clips that do not make a data set are refused, in memory and before anything is written."""

import numpy as np
import pytest
from example_clips import CLASSES, PAIRS, RICH, clip, pair

from clipseq.data import MapDataset, write_dataset
from clipseq.errors import DataError


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": "b"}, "'b'.*used twice"),
        ({"caption": ""}, "the caption must not be empty"),
        ({"caption": " "}, "the caption must not be empty"),
        ({"caption": b"waves"}, "the caption must be a string, got b'waves'"),
        ({"caption": None}, "the caption must be a string, got None"),
        ({"caption": "waves \ud83d"}, "the caption must be Unicode text, .* surrogate"),
        ({"id": "a\ud83d"}, "its id must be Unicode text"),
        ({"actions": ("w\ud83d",)}, "an action must be Unicode text"),
        ({"sources": ("w\ud83d",)}, "a source must be Unicode text"),
        ({"permuted": ("x", 3)}, "a permuted caption must be a string, got 3"),
        ({"permuted": ("x", " ")}, "a permuted caption must not be empty"),
        ({"split": "tests"}, "got 'tests': did you mean 'test'"),
        ({"spans": ((0, 6),), "actions": ("x",)}, r"span \(0, 6\)"),
        ({"spans": ((0, 6),)}, "1 spans for 0 actions"),
        ({"permuted": ("a person does a",)}, "must differ from the caption"),
        ({"label": "wav"}, "a class caption, got 'wav': did you mean 'wave'"),
        ({"sources": ("tape 3",)}, "got 'tape 3' in 'train' and, with clip 'c', in 'test'"),
        ({"signal": {"range_time": np.ones((4, 5))}}, "its radar must have the views"),
        ({"signal": {}}, "got no map|must have the views"),
        ({"paired": {"joints": np.ones((4, 5))}}, "second signal .paired., got one in 'a'"),
    ],
)
def test_clips_that_do_not_make_a_dataset_are_refused(tmp_path, changed, message):
    clips = [*RICH[1:], clip(**{"id": "a"} | changed)]
    with pytest.raises(DataError, match=message):
        MapDataset.from_clips(clips, class_captions=CLASSES)
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "set", clips, class_captions=CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.ones((4, 4)), "4 frames"),
        (np.ones((5, 5)), "5 bins"),
        (np.ones(4), "float array"),
        (np.ones((4, 5), complex), "float array"),
        (np.full((4, 5), np.nan), "NaN.*frame 0"),
        (np.where(np.arange(5) == 3, np.inf, np.ones((4, 1))), "frame 3"),
    ],
)
def test_bad_maps_are_refused_in_either_signal(maps, message):
    good = np.ones((3, 5))
    one = clip("b", signal={"doppler_time": good, "range_time": np.ones((4, 5))})
    two = clip("a", signal={"doppler_time": good, "range_time": maps})
    with pytest.raises(DataError, match=f"'a': audio view 'range_time'.*{message}"):
        MapDataset.from_clips([one, two], modality="audio")
    pairs = [clip(c.id, signal={"x": good}, paired=c.signal) for c in (one, two)]
    with pytest.raises(DataError, match=f"'a': motion view 'range_time'.*{message}"):
        MapDataset.from_clips(pairs, modality="audio", paired_modality="motion")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "paired_modality must name the second signal.*got None for clips with one"),
        ({"modality": "motion", "paired_modality": "motion"}, "must differ.*'motion' for both"),
        ({"paired_modality": "text"}, "paired_modality must not be one of text, ids"),
        ({"paired_modality": "m", "modality": "m_lengths"}, "modality must not .*'m_lengths'"),
        ({"paired_modality": "m", "modality": "m_mask"}, "modality must not .*'m_mask'"),
        ({"paired_modality": "m", "modality": "ids"}, "modality must not .*'ids'"),
        ({"paired_modality": "Motion"}, "lower-case letters.*got 'Motion'"),
        ({"paired_modality": ""}, "lower-case letters.*got ''"),
        ({"paired_modality": "m", "modality": "two words"}, "got 'two words'"),
    ],
)
def test_bad_names_of_signals_are_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        MapDataset.from_clips(PAIRS, **options)
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "set", PAIRS, **options)


def test_a_second_signal_or_its_rate_without_clips_that_have_it_is_refused():
    with pytest.raises(DataError, match="got 'motion' for clips without one"):
        MapDataset.from_clips([clip()], paired_modality="motion")
    with pytest.raises(DataError, match="paired_frame_rate must be None"):
        MapDataset.from_clips([clip()], paired_frame_rate=30.0)


def test_captions_of_pairs_are_given_for_all_clips_or_for_none():
    clips = [pair("a"), pair("b", caption="")]
    with pytest.raises(DataError, match="every clip or no clip must have a caption"):
        MapDataset.from_clips(clips, paired_modality="motion")
    with pytest.raises(DataError, match="the caption must not be empty"):
        MapDataset.from_clips([pair(caption="", permuted=("x",))], paired_modality="motion")


def test_a_class_caption_must_be_a_string_with_words(unchecked_signatures):
    with pytest.raises(DataError, match="the caption of class 'wave' must be a string, got 3"):
        MapDataset.from_clips(RICH, class_captions={"wave": 3})
    with pytest.raises(DataError, match="the caption of class 'wave' must not be empty"):
        MapDataset.from_clips(RICH, class_captions={"wave": " "})


def test_a_dataset_has_clips():
    with pytest.raises(DataError, match="no clips"):
        MapDataset.from_clips([])
