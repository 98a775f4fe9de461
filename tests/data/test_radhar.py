"""Real recordings are spliced within one block and one split, in the documented units."""

import numpy as np
import pytest

from clipseq.data import radhar_dataset
from clipseq.data.radhar import DECIBELS, VIEWS
from clipseq.errors import DataError

FILE = "radhar_maps/radhar_maps.npz"
CLASSES = ["boxing", "jack", "jump", "squats", "walk"]


def arrays(**changed):
    """Return a file of 40 recordings in 4 blocks; every byte of recording i is i + 1."""
    n, frames = 40, 600
    value = (np.arange(n, dtype=np.uint8) + 1)[:, None, None]
    block = np.arange(n) // 10
    return {
        **{view: np.broadcast_to(value, (n, frames, 4)) for view in VIEWS},
        "length": np.full(n, 590, np.int16),
        "label": (np.arange(n) % 5).astype(np.int8),
        "class_names": np.array(CLASSES),
        "block": block.astype(np.int8),
        "split": np.array(
            [
                "test" if b == 3 else ("val" if i % 10 >= 5 and b == 0 else "train")
                for i, b in enumerate(block)
            ]
        ),
        "name": np.array([f"rec{i}" for i in range(n)]),
        "fps": np.float32(30),
    } | changed


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "radhar.npz", **arrays())
    return tmp_path / "radhar.npz"


def recordings(clip):
    """Return the number of the recording that each frame came from, read from its values."""
    mean, scale = DECIBELS["doppler"]
    return np.round((clip.signal["doppler"][0] * scale + mean) * 6).astype(int) - 1


def test_clips_are_spliced_from_one_block_and_one_split(path):
    dataset = radhar_dataset(path, seed=1, clips={"train": 60, "val": 20, "test": 30})
    assert dataset.splits == {"train": 60, "val": 20, "test": 30, "zeroshot": 40}
    assert dataset.frame_rate == 15
    assert dataset.modality == "radar"
    file = arrays()
    for clip in dataset:
        came_from = recordings(clip)
        group = "test" if clip.split == "zeroshot" else clip.split
        assert {file["split"][i] for i in came_from} == {group}
        assert len({file["block"][i] for i in came_from}) == 1
        assert clip.spans[0][0] == 0
        assert clip.spans[-1][1] == clip.frames
        for action, source, (start, stop) in zip(
            clip.actions, clip.sources, clip.spans, strict=True
        ):
            (one,) = set(came_from[start:stop])
            assert CLASSES[file["label"][one]] == action
            assert source == f"rec{one}"
            if clip.split != "zeroshot":
                assert 3 * 15 <= stop - start <= 5 * 15
        if clip.split == "zeroshot":
            assert clip.caption == dataset.class_captions[clip.label]
        else:
            assert len(set(clip.actions)) == len(clip.actions) in {2, 3, 4}
            assert clip.caption not in clip.permuted


def test_seeds_make_it_reproducible(path):
    one, two, other = (radhar_dataset(path, seed=seed, clips={"train": 8}) for seed in (1, 1, 2))
    assert one.captions == two.captions != other.captions
    np.testing.assert_array_equal(recordings(one[3]), recordings(two[3]))


def test_two_recorded_frames_become_one_by_their_maximum(tmp_path):
    maps = np.zeros((40, 600, 4), np.uint8)
    maps[:, 1::2] = 60  # 10 dB in every other frame
    np.savez(tmp_path / "r.npz", **arrays(doppler=maps))
    mean, scale = DECIBELS["doppler"]
    clip = radhar_dataset(tmp_path / "r.npz", clips={"train": 1})[0]
    np.testing.assert_allclose(clip.signal["doppler"], (10 - mean) / scale, rtol=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": np.array(["a", *CLASSES[1:]])}, "class_names must be some of .* got .'a'"),
        ({"split": np.array(["train"] * 40)}, "no recording in split 'val'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, changed, message):
    np.savez(tmp_path / "r.npz", **arrays(**changed))
    with pytest.raises(DataError, match=rf"r\.npz.*{message}"):
        radhar_dataset(tmp_path / "r.npz")


def test_bad_arguments_and_files_are_refused(tmp_path, path):
    np.savez(tmp_path / "r.npz", x=np.ones(2))
    with pytest.raises(DataError, match="lacks"):
        radhar_dataset(tmp_path / "r.npz")
    with pytest.raises(DataError, match="no such file"):
        radhar_dataset(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="clips must name splits"):
        radhar_dataset(path, clips={"training": 3})
    with pytest.raises(ValueError, match="window_seconds"):
        radhar_dataset(path, window_seconds=(5.0, 3.0))
    with pytest.raises(ValueError, match=r"at most 19\.7 s"):
        radhar_dataset(path, window_seconds=(5.0, 30.0))


def test_the_real_recordings(shared_data):
    dataset = radhar_dataset(shared_data(FILE), clips={"train": 200, "val": 30, "test": 60})
    assert dataset.views == {"range_moving": 128, "doppler": 16, "azimuth_moving": 64}
    assert dataset.splits["zeroshot"] == 47 * 4
    for view in dataset.views:
        values = np.concatenate([c.signal[view].ravel() for c in dataset.subset("train")])
        assert abs(values.mean()) < 0.15
        assert 0.8 < values.std() < 1.2
