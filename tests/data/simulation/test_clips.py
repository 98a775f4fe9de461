"""A simulated data set has the promised clips, is reproducible, and survives interruptions."""

import json

import numpy as np
import pytest

from clipseq.data import MapDataset, Radar, folder_format, simulate
from clipseq.data.simulation import clips as simulation
from clipseq.data.simulation.motions import ACTIONS
from clipseq.errors import DataError

LITTLE = Radar(samples=32, chirps=16, azimuth_bins=8, bandwidth_hz=5e8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("simulated") / "set", 60, seed=3)


@pytest.fixture
def small_files(monkeypatch):
    for module in (folder_format, simulation):
        monkeypatch.setattr(module, "CLIPS_PER_FILE", 4)


def same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.id, a.caption, a.permuted, a.spans) == (b.id, b.caption, b.permuted, b.spans)
        for view in a.signal:
            np.testing.assert_array_equal(a.signal[view], b.signal[view])


def test_the_clips_are_as_promised(dataset):
    assert dataset.splits == {"train": 45, "val": 3, "test": 6, "zeroshot": 6}
    assert dataset.views == {"range_time": 64, "doppler_time": 64, "azimuth_time": 32}
    assert dataset.modality == "radar"
    assert dataset.frame_rate == 16
    assert dataset.class_captions.keys() == ACTIONS.keys()
    for clip in dataset:
        assert len(clip.spans) == len(clip.actions)
        if clip.split == "zeroshot":
            assert clip.actions == (clip.label,)
            assert not clip.permuted
        else:
            assert clip.frames == 160
            assert 2 <= len(clip.actions) <= 4
            assert clip.label is None
            assert clip.caption not in clip.permuted
            assert len(clip.permuted) >= 1
        stops = [stop for _, stop in clip.spans]
        assert stops == sorted(stops)
        assert stops[-1] <= clip.frames
    assert len(set(dataset.captions)) > 50


def test_the_maps_have_about_zero_mean_and_unit_scale(dataset):
    for view in dataset.views:
        values = np.concatenate([clip.signal[view].ravel() for clip in dataset])
        assert abs(values.mean()) < 0.25
        assert 0.7 < values.std() < 1.4


def test_spans_are_where_the_actions_are(dataset):
    """The Doppler map is busier within moving actions than while the person stands still."""
    busy, still = [], []
    for clip in dataset:
        off_zero = np.delete(clip.signal["doppler_time"], slice(28, 37), axis=0).max(axis=0)
        for name, (start, stop) in zip(clip.actions, clip.spans, strict=True):
            if name == "stand_still":
                still.append(off_zero[start + 2 : stop - 2].mean())
            elif name in {"walk_towards", "walk_away", "run_towards", "run_away"}:
                busy.append(off_zero[start:stop].mean())
    assert still
    assert busy
    assert min(busy) > max(still)


def test_read_again_it_is_the_same(dataset, tmp_path):
    same(simulate(tmp_path / "a", 6, seed=1, radar=LITTLE), MapDataset(tmp_path / "a"))


def test_seeds_make_it_reproducible(tmp_path):
    one, two, other = (
        simulate(tmp_path / name, 6, seed=seed, radar=LITTLE)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    same(one, two)
    assert one.captions != other.captions


def test_clutter_rests(tmp_path):
    bare, full = (simulate(tmp_path / str(n), 6, seed=1, radar=LITTLE, clutter=n) for n in (0, 20))
    more = sum(
        (b.signal["doppler_time"] - a.signal["doppler_time"]).mean(axis=1)
        for a, b in zip(bare, full, strict=True)
    )
    assert more[8] == max(more), "0 m/s"
    assert more[8] > 2
    assert abs(more[[0, 1, 2, 3, 13, 14, 15]]).max() < more[8] / 5


def test_an_interrupted_simulation_is_completed(tmp_path, small_files):
    whole = simulate(tmp_path / "whole", 10, seed=1, radar=LITTLE)

    def interrupt(done, total):
        assert total == 10
        if done == 8:
            raise KeyboardInterrupt

    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        simulate(out, 10, seed=1, radar=LITTLE, progress=interrupt)
    with pytest.raises(DataError, match="unfinished simulation"):
        MapDataset(out)
    with pytest.raises(DataError, match="other arguments"):
        simulate(out, 10, seed=2, radar=LITTLE)
    kept = out / "maps/00000.npz"
    before = kept.stat().st_mtime_ns
    (out / "maps/00001.npz").write_bytes(b"damaged")
    seen = []
    same(
        simulate(out, 10, seed=1, radar=LITTLE, progress=lambda *p: seen.append(p)),
        whole,
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert kept.stat().st_mtime_ns == before, "finished files are kept"
    same(MapDataset(out), whole)
    assert sorted(p.name for p in out.iterdir()) == ["clips.jsonl", "dataset.json", "maps"]


def test_a_complete_simulation_is_only_opened(tmp_path):
    one = simulate(tmp_path / "set", 4, seed=1, radar=LITTLE)
    calls = []
    same(
        simulate(tmp_path / "set", 4, seed=1, radar=LITTLE, progress=lambda *p: calls.append(p)),
        one,
    )
    assert not calls
    with pytest.raises(DataError, match="another data set"):
        simulate(tmp_path / "set", 5, seed=1, radar=LITTLE)
    head = json.loads((tmp_path / "set/dataset.json").read_text())
    assert head["simulated"]["seed"] == 1


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not an empty folder"):
        simulate(tmp_path, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"clips": 0},
        {"seed": -1},
        {"seconds": 0.0},
        {"clutter": -1},
        {"split_shares": {"train": 0.5}},
        {"split_shares": {"training": 1.0}},
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_made(tmp_path, wrong):
    with pytest.raises(ValueError, match="|".join((*wrong, "clips"))):
        simulate(tmp_path / "set", **wrong)
    assert not list(tmp_path.iterdir())
