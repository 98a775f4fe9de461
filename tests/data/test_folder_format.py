"""Data set folders: written and read, made by hand, in an older format, and damaged."""

import json
import re
import zipfile

import numpy as np
import pytest
from example_clips import CLASSES, PAIRS, RICH, assert_same, clip, pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipseq.data import MapDataset, write_dataset
from clipseq.data.folder_format import CLIPS_PER_FILE
from clipseq.errors import DataError


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    many=st.booleans(),
    paired=st.booleans(),
)
def test_reading_gives_what_was_written(tmp_path_factory, lengths, many, paired):
    lengths = lengths * (CLIPS_PER_FILE if many else 1)
    if paired:
        clips = [pair(f"clip {i} é", n, m) for i, (n, m) in enumerate(lengths)]
    else:
        clips = [clip(f"clip {i} é", n) for i, (n, _) in enumerate(lengths)]
    path = tmp_path_factory.mktemp("data") / "set"
    assert write_dataset(path, clips, paired_modality="motion" if paired else None) == path
    read = MapDataset(path)
    assert len(read) == len(clips)
    assert read.views == {"range_time": 4, "doppler_time": 3}
    assert read.paired_views == ({"joints": 6, "range_time": 2} if paired else {})
    for one, two in zip(clips, read, strict=True):
        assert_same(one, two)


def test_every_field_survives(tmp_path):
    write_dataset(tmp_path / "set", RICH, modality="sonar", frame_rate=12.5, class_captions=CLASSES)
    read = MapDataset(tmp_path / "set")
    for one, two in zip(RICH, read, strict=True):
        assert_same(one, two)
    assert read.modality == "sonar"
    assert read.frame_rate == 12.5
    assert read.class_captions == CLASSES
    assert read.captions == [c.caption for c in RICH]
    assert read.splits == {"train": 2, "test": 1, "zeroshot": 1}
    assert [c.id for c in read.subset("train")] == ["a", "b"]
    assert all(m.dtype == np.float32 for c in read for m in c.signal.values())


@pytest.mark.parametrize("caption", ["a person waves", ""])
def test_a_second_signal_survives_with_and_without_captions(tmp_path, caption):
    pairs = [pair("a", 5, 8, caption=caption), pair("bc", 7, 3, caption=caption)]
    write_dataset(
        tmp_path / "set",
        pairs,
        modality="audio",
        paired_modality="motion",
        frame_rate=100.0,
        paired_frame_rate=30.0,
    )
    read = MapDataset(tmp_path / "set")
    for one, two in zip(pairs, read, strict=True):
        assert_same(one, two)
    assert (read.modality, read.paired_modality) == ("audio", "motion")
    assert (read.frame_rate, read.paired_frame_rate) == (100.0, 30.0)
    assert read.modalities == ("audio", "motion", "text")[: 3 if caption else 2]


def test_the_files_are_what_the_documentation_says(tmp_path):
    write_dataset(tmp_path / "set", RICH[:2])
    head = json.loads((tmp_path / "set/dataset.json").read_text())
    assert head == {
        "format": "clipseq maps",
        "version": 1,
        "modality": "radar",
        "views": {"range_time": 4, "doppler_time": 3},
    }
    lines = [json.loads(s) for s in (tmp_path / "set/clips.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "id": "b", "file": "maps/00000.npz", "start": 5, "frames": 7, "caption": "a person does b",
        "sources": ["tape 1", "tape 2"], "split": "train",
    }  # fmt: skip
    with np.load(tmp_path / "set/maps/00000.npz", allow_pickle=False) as maps:
        assert maps["range_time"].shape == (4, 12)


def test_the_files_of_pairs_are_what_the_documentation_says(tmp_path):
    names = {"modality": "audio", "paired_modality": "motion"}
    write_dataset(tmp_path / "set", PAIRS, paired_frame_rate=30.0, **names)
    head = json.loads((tmp_path / "set/dataset.json").read_text())
    assert head == {
        "format": "clipseq maps",
        "version": 1,
        "modality": "audio",
        "views": {"range_time": 4, "doppler_time": 3},
        "paired": {
            "modality": "motion", "views": {"joints": 6, "range_time": 2}, "frame_rate": 30.0,
        },
    }  # fmt: skip
    lines = [json.loads(s) for s in (tmp_path / "set/clips.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "id": "bc", "file": "maps/00000.npz", "start": 5, "frames": 7,
        "paired": {"file": "paired/00000.npz", "start": 8, "frames": 3},
        "caption": "a person does bc", "split": "test",
    }  # fmt: skip
    with np.load(tmp_path / "set/paired/00000.npz", allow_pickle=False) as maps:
        assert {view: maps[view].shape for view in maps.files} == {
            "joints": (6, 11),
            "range_time": (2, 11),
        }


@pytest.mark.parametrize("view", ["file", "allow_pickle", "args", "a b/c.npy", "é"])
def test_a_view_may_have_any_name_and_the_file_holds_only_views(tmp_path, view):
    maps = np.arange(12, dtype=np.float16).reshape(3, 4)
    write_dataset(tmp_path / "set", [clip(signal={view: maps, "range_time": maps})])
    with np.load(tmp_path / "set/maps/00000.npz", allow_pickle=False) as written:
        assert written.files == [view, "range_time"]
    np.testing.assert_array_equal(MapDataset(tmp_path / "set")[0].signal[view], maps)


def test_a_caption_may_hold_any_line_separator(tmp_path):
    separators = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    write_dataset(tmp_path / "set", [clip(caption=f"sits{separators}waves"), clip("b")])
    assert MapDataset(tmp_path / "set").captions[0] == f"sits{separators}waves"
    index = tmp_path / "set/clips.jsonl"
    index.write_bytes(index.read_bytes().replace(b"\n", b"\r\n"))
    assert MapDataset(tmp_path / "set").captions[0] == f"sits{separators}waves"


def test_an_older_folder_made_by_hand_is_read_as_radar(tmp_path):
    (tmp_path / "dataset.json").write_text(
        '{"format": "clipseq maps", "version": 1, "views": {"spectrum": 6}}'
    )
    (tmp_path / "clips.jsonl").write_text(
        '{"id": "1", "file": "one.npz", "caption": "a dog runs"}\n\n'
        '{"id": "2", "file": "two.npz", "caption": "a dog sits", "split": "test"}\n'
    )
    np.savez(tmp_path / "one.npz", spectrum=np.ones((6, 3)))
    np.savez_compressed(tmp_path / "two.npz", spectrum=np.zeros((6, 8), np.float16))
    read = MapDataset(tmp_path)
    assert [c.frames for c in read] == [3, 8]
    assert read.frame_rate is None
    assert read.modality == "radar"
    assert (read.paired_modality, read.paired_views, read.paired_frame_rate) == (None, {}, None)
    np.testing.assert_array_equal(read[0].signal["spectrum"], np.ones((6, 3)))


def test_pairs_made_by_hand_need_little(tmp_path):
    (tmp_path / "dataset.json").write_text(
        '{"format": "clipseq maps", "version": 1, "modality": "audio", "views": {"mel": 6}, '
        '"paired": {"modality": "motion", "views": {"mel": 2}}}'
    )
    (tmp_path / "clips.jsonl").write_text(
        '{"id": "1", "file": "a.npz", "paired": {"file": "b.npz", "start": 1}}\n'
        '{"id": "2", "file": "a.npz", "frames": 2, "paired": {"file": "b.npz", "frames": 1}}\n'
    )
    np.savez(tmp_path / "a.npz", mel=np.ones((6, 3)))
    np.savez(tmp_path / "b.npz", mel=np.arange(8.0).reshape(2, 4))
    one, two = MapDataset(tmp_path)
    np.testing.assert_array_equal(one.paired["mel"], [[1, 2, 3], [5, 6, 7]])
    np.testing.assert_array_equal(two.paired["mel"], [[0], [4]])
    assert (one.frames, two.frames) == (3, 2)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))


def edit(old, new):
    def apply(path):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return apply


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("maps/00000.npz", lambda p: p.unlink(), "no such file"),
        ("maps/00000.npz", truncate, "corrupt"),
        ("maps/00000.npz", flip, "corrupt"),
        ("maps/00000.npz", lambda p: p.write_bytes(b"\x80\x04K\x01."), "not an .npz"),
        (
            "maps/00000.npz",
            lambda p: np.savez(p, range_time=np.ones((4, 12))),
            "must have the views of dataset.json",
        ),
        ("clips.jsonl", lambda p: p.unlink(), "cannot be read"),
        ("clips.jsonl", edit('"start": 5', '"start": 6'), "line 2: .*got frames 6 to 13"),
        ("clips.jsonl", edit('"start": 5', '"strat": 5'), "did you mean 'start'"),
        ("clips.jsonl", edit('"id": "b", ', ""), "line 2: 'id' is missing"),
        ("clips.jsonl", edit('"id": "b"', '"id": 7'), "'id' must be str"),
        ("clips.jsonl", edit('"a person does b"', "null"), "'caption' must be str, got None"),
        ("clips.jsonl", edit('"a person does b"', "3"), "'caption' must be str, got 3"),
        ("clips.jsonl", edit('["waves, sits"]', "[3]"), "'permuted' must be a list of strings"),
        ("clips.jsonl", edit('"id": "b"', '"id": "b", "id": "c"'), "line 2.*'id' is given twice"),
        ("clips.jsonl", edit("[[0, 2], [2, 5]]", "[[0], [2, 5]]"), "'spans' must be"),
        ("clips.jsonl", edit("}\n", "\n"), "must be JSON"),
        ("clips.jsonl", lambda p: p.write_text(""), "no clips"),
        ("dataset.json", lambda p: p.unlink(), "missing"),
        ("dataset.json", lambda p: p.write_text("[]"), "JSON object"),
        ("dataset.json", edit('"version": 1', '"version": 9'), "version 9"),
        (
            "dataset.json",
            edit('"range_time": 4', '"range_time": 5'),
            "00000.npz: view 'range_time'",
        ),
        ("dataset.json", edit('"range_time": 4', '"range_time": "4"'), "'views'"),
        ("dataset.json", edit('"radar"', "null"), "modality must be a string, got None"),
        (
            "dataset.json",
            edit('"views"', '"class_captions": {"w": "x", "w": "y"}, "views"'),
            "'w' is given twice",
        ),
        (
            "dataset.json",
            edit('"views"', '"class_captions": {"w": null}, "views"'),
            "'class_captions' must map names to str",
        ),
    ],
)
def test_a_damaged_dataset_is_refused_with_the_name_of_the_file(tmp_path, name, damage, message):
    write_dataset(tmp_path / "set", RICH[:2])
    damage(tmp_path / "set" / name)
    with pytest.raises(DataError, match=message) as error:
        MapDataset(tmp_path / "set")
    if message != "no clips":
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("paired/00000.npz", lambda p: p.unlink(), "no such file"),
        ("paired/00000.npz", flip, "corrupt"),
        ("paired/00000.npz", lambda p: np.savez(p, joints=np.ones((6, 11))), "must have the views"),
        ("clips.jsonl", edit('"start": 8', '"start": 9'), "line 2: .*got frames 9 to 12"),
        ("clips.jsonl", edit('"start": 8', '"strat": 8'), "line 2: 'paired'.*did you mean 'start'"),
        ("clips.jsonl", edit('"paired": {"file": "paired/00000.npz", ', '"paired": {'),
         "line 1: 'paired': 'file' is missing"),
        ("clips.jsonl", lambda p: p.write_text(re.sub('"paired": {.*?}, ', "", p.read_text())),
         "line 1: 'paired' is missing"),
        ("clips.jsonl", edit('{"file": "paired/00000.npz", "start": 8, "frames": 3}', "[]"),
         "'paired' must be dict"),
        ("dataset.json", edit('"modality": "motion"', '"modality": 3'), "'paired': modality must"),
        ("dataset.json", edit('"joints": 6', '"joints": 7'), "joints.*F=7"),
    ],
)  # fmt: skip
def test_a_damaged_second_signal_is_refused_with_the_name_of_the_file(
    tmp_path, name, damage, message
):
    write_dataset(tmp_path / "set", PAIRS, modality="audio", paired_modality="motion")
    damage(tmp_path / "set" / name)
    with pytest.raises(DataError, match=message):
        MapDataset(tmp_path / "set")


def test_a_second_signal_must_be_announced_in_the_head(tmp_path):
    write_dataset(tmp_path / "set", RICH[:2])
    edit('"frames": 5', '"frames": 5, "paired": {"file": "maps/00000.npz"}')(
        tmp_path / "set/clips.jsonl"
    )
    with pytest.raises(DataError, match="line 1: 'paired' must be absent unless dataset.json has"):
        MapDataset(tmp_path / "set")


def test_missing_and_existing_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        MapDataset(tmp_path)
    with pytest.raises(DataError, match="exists already"):
        write_dataset(tmp_path, RICH[:1])


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", RICH[:2])
    assert list(tmp_path.iterdir()) == []


def test_no_pickle_is_written(tmp_path):
    write_dataset(tmp_path / "set", RICH[:2])
    with zipfile.ZipFile(tmp_path / "set/maps/00000.npz") as archive:
        for name in archive.namelist():
            assert b"'descr': '<f" in archive.read(name)[:128]
