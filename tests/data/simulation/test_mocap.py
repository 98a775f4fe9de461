"""Recorded motion is decoded, spliced within one subject, and drives the radar."""

import numpy as np
import pytest

from clipseq.data import simulate
from clipseq.data.simulation.body import POINTS
from clipseq.data.simulation.mocap import read_recordings
from clipseq.errors import DataError

FILE = "uiprmd_points/uiprmd_points.npz"
QUANTUM = 0.0005


def encode(segments):
    """Return the second differences of positions in quanta, for each segment by itself."""
    coded = []
    for positions in segments:
        first = np.concatenate([positions[:1], np.diff(positions, axis=0)])
        coded.append(np.concatenate([first[:1], first[1:2], np.diff(first[1:], axis=0)]))
    return np.concatenate(coded).transpose(1, 2, 0).astype(np.int16)


def arrays(segments, **changed):
    n = len(segments)
    return {
        "points_delta2": encode(segments),
        "offsets": np.cumsum([0, *map(len, segments)]).astype(np.int32),
        "quantum_m": np.float32(QUANTUM),
        "point_names": np.array(POINTS),
        "fps": np.float32(25),
        "label": np.arange(n) % 4,
        "class_names": np.array(["lunge", "squat", "reach", "kick"]),
        "captions": np.array(["lunges", "squats", "reaches out", "kicks"]),
        "subject": np.arange(n) // 4,
        "split": np.array([("train", "val", "test")[i // 4 % 3] for i in range(n)]),
    } | changed


@pytest.fixture
def segments():
    rng = np.random.default_rng(0)
    stand = rng.integers(0, 3000, (20, 3))
    made = []
    for frames in rng.integers(40, 60, 12):
        sway = np.sin(np.linspace(0, 2 * np.pi, frames))[:, None, None]
        made.append(np.round(stand + 400 * sway * rng.normal(size=(20, 3))).astype(int))
    return made


def test_positions_are_decoded(tmp_path, segments):
    np.savez(tmp_path / "motion.npz", **arrays(segments))
    read = read_recordings(tmp_path / "motion.npz")
    for positions, points in zip(segments, read.points, strict=True):
        np.testing.assert_allclose(points, positions * QUANTUM, rtol=1e-6)
    assert read.rate == 25
    assert read.phrases["reach"] == "reaches out"
    assert read.subjects[4:8] == (1, 1, 1, 1)


def test_sequences_are_spliced_from_one_subject_of_the_split(tmp_path, segments):
    np.savez(tmp_path / "motion.npz", **arrays(segments))
    read = read_recordings(tmp_path / "motion.npz")
    for seed in range(20):
        for split, subject in (("train", 0), ("val", 1), ("test", 2), ("zeroshot", 2)):
            act = read.perform(np.random.default_rng(seed), split)
            numbers = [int(s.removeprefix("segment-")) for s in act.sources]
            assert {read.subjects[i] for i in numbers} == {subject}
            assert len(set(act.actions)) == len(act.actions) in {2, 3, 4}
            assert act.actions == tuple(read.labels[i] for i in numbers)
            assert len(act.points) / act.rate == pytest.approx(10, abs=0.2)
            for i, (start, stop) in zip(numbers, act.spans, strict=True):
                inside = act.points[round(start * 25) : round(stop * 25)]
                own = read.points[i]
                # The body turns and moves as a whole, so distances between points are kept.
                np.testing.assert_allclose(
                    np.linalg.norm(inside[:, 0] - inside[:, 9], axis=-1),
                    np.linalg.norm(own[:, 0] - own[:, 9], axis=-1),
                    atol=1e-9,
                )
                np.testing.assert_allclose(inside[..., 2], own[..., 2], atol=1e-9)


def test_one_class(tmp_path, segments):
    np.savez(tmp_path / "motion.npz", **arrays(segments))
    read = read_recordings(tmp_path / "motion.npz")
    act = read.perform(np.random.default_rng(0), "zeroshot", seconds=None, label="kick")
    assert act.actions == ("kick",)
    with pytest.raises(DataError, match="no segment"):
        read.perform(np.random.default_rng(0), "zeroshot", label="wave")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"point_names": np.array(["nose"] * 20)}, "points must be"),
        ({"offsets": np.array([0, 5])}, "label must have shape"),
        ({"subject": np.zeros(3)}, "subject must have shape"),
    ],
)
def test_another_file_is_refused(tmp_path, segments, changed, message):
    np.savez(tmp_path / "motion.npz", **arrays(segments, **changed))
    with pytest.raises(DataError, match=rf"motion\.npz.*{message}"):
        read_recordings(tmp_path / "motion.npz")


def test_a_file_without_the_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "motion.npz", x=np.ones(3))
    with pytest.raises(DataError, match=r"lacks.*points_delta2"):
        read_recordings(tmp_path / "motion.npz")
    with pytest.raises(DataError, match="no such file"):
        simulate(tmp_path / "set", 4, motion=tmp_path / "none.npz")
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
def test_real_motion_drives_the_radar(tmp_path, shared_data):
    path = shared_data(FILE)
    read = read_recordings(path)
    assert len(read.points) == 1977
    heads = np.array([p[:, 0, 2].max() for p in read.points])
    assert 1.4 < np.median(heads) < 1.9, "metres above the floor"
    shoulders = np.array([p[0, 4] - p[0, 12] for p in read.points])
    assert np.median(shoulders[:, 1]) > 0.2, "facing +x, the left shoulder is at +y"
    dataset = simulate(tmp_path / "set", 40, seed=1, motion=path)
    wanted = {"train": range(1, 7), "val": (7, 8), "test": (9, 10), "zeroshot": (9, 10)}
    for clip in dataset:
        for source in clip.sources:
            assert read.subjects[int(source.removeprefix("segment-"))] in wanted[clip.split]
    again = simulate(tmp_path / "again", 40, seed=1, motion=path)
    assert again.captions == dataset.captions
    np.testing.assert_array_equal(
        again[7].signal["doppler_time"], dataset[7].signal["doppler_time"]
    )
