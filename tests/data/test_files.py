import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipseq.data import Clip, MapDataset, write_dataset
from clipseq.data.files import CLIPS_PER_FILE
from clipseq.errors import DataError


def clip(id="a", frames=5, **fields):
    rng = np.random.default_rng(len(id) + frames)
    radar = {
        "range_time": rng.normal(size=(4, frames)).astype(np.float32),
        "doppler_time": rng.normal(size=(3, frames)).astype(np.float16),
    }
    return Clip(**{"id": id, "radar": radar, "caption": f"a person does {id}"} | fields)


def same(one, two):
    for name in ("id", "caption", "actions", "spans", "permuted", "sources", "split", "label"):
        assert getattr(one, name) == getattr(two, name)
    assert one.radar.keys() == two.radar.keys()
    for view, values in one.radar.items():
        np.testing.assert_array_equal(values.astype(np.float32), two.radar[view])


RICH = (
    clip("a", 5, actions=("sit", "wave"), spans=((0, 2), (2, 5)), permuted=("waves, sits",)),
    clip("b", 7, sources=("tape 1", "tape 2"), split="train"),
    clip("c", 1, sources=("tape 3",), split="test"),
    clip("d", 2, sources=("tape 3",), split="zeroshot", label="wave", actions=("wave",)),
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), many=st.booleans())
def test_what_is_written_is_read(tmp_path_factory, lengths, many):
    lengths = lengths * (CLIPS_PER_FILE if many else 1)
    clips = [clip(f"clip {i} é", n) for i, n in enumerate(lengths)]
    path = tmp_path_factory.mktemp("data") / "set"
    assert write_dataset(path, clips) == path
    read = MapDataset(path)
    assert len(read) == len(clips)
    assert read.views == {"range_time": 4, "doppler_time": 3}
    for one, two in zip(clips, read, strict=True):
        same(one, two)


def test_every_field_survives(tmp_path):
    write_dataset(
        tmp_path / "set", RICH, frame_rate=12.5, class_captions={"wave": "a person waves"}
    )
    read = MapDataset(tmp_path / "set")
    for one, two in zip(RICH, read, strict=True):
        same(one, two)
    assert read.frame_rate == 12.5
    assert read.class_captions == {"wave": "a person waves"}
    assert read.captions == [c.caption for c in RICH]
    assert read.splits == {"train": 2, "test": 1, "zeroshot": 1}
    assert [c.id for c in read.subset("train")] == ["a", "b"]
    assert all(m.dtype == np.float32 for c in read for m in c.radar.values())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", ["memory", "folder", "npz"])
def test_what_is_done_to_a_clip_leaves_the_dataset_as_it_is(tmp_path, dtype, place):
    maps = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    clips = [clip(f"{i}", radar={"doppler": m}) for i, m in enumerate(maps)]
    if place == "memory":
        read = MapDataset.from_clips(clips)
    elif place == "folder":
        read = MapDataset(write_dataset(tmp_path / "set", clips))
    else:
        np.savez(tmp_path / "set.npz", doppler=maps, captions=["sits", "waves"])
        read = MapDataset(tmp_path / "set.npz")
    for i in range(2):
        torch.from_numpy(read[i].radar["doppler"]).zero_()
        np.testing.assert_array_equal(read[i].radar["doppler"], np.arange(24).reshape(2, 3, 4)[i])


@pytest.mark.parametrize("index", [slice(0, 2), "a", 1.0, (0, 1), [0, 1], None])
def test_several_clips_at_once_are_refused_with_what_gives_them(unchecked_signatures, index):
    read = MapDataset.from_clips(RICH, class_captions={"wave": "a person waves"})
    with pytest.raises(
        TypeError, match=r"takes one whole number, got .*dataset\.subset\('train'\)"
    ):
        read[index]
    assert [read[i].id for i in (np.int64(1), -1, torch.tensor(0))] == ["b", "d", "a"]
    with pytest.raises(IndexError):
        read[4]


def test_the_files_are_what_the_documentation_says(tmp_path):
    write_dataset(tmp_path / "set", RICH[:2])
    head = json.loads((tmp_path / "set/dataset.json").read_text())
    assert head == {
        "format": "clipseq maps",
        "version": 1,
        "views": {"range_time": 4, "doppler_time": 3},
    }
    lines = [json.loads(s) for s in (tmp_path / "set/clips.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "id": "b", "file": "maps/00000.npz", "start": 5, "frames": 7, "caption": "a person does b",
        "sources": ["tape 1", "tape 2"], "split": "train",
    }  # fmt: skip
    with np.load(tmp_path / "set/maps/00000.npz", allow_pickle=False) as maps:
        assert maps["range_time"].shape == (4, 12)


@pytest.mark.parametrize("view", ["file", "allow_pickle", "args", "a b/c.npy", "é"])
def test_any_name_of_a_view_will_do_and_nothing_else_is_in_the_file(tmp_path, view):
    maps = np.arange(12, dtype=np.float16).reshape(3, 4)
    write_dataset(tmp_path / "set", [clip(radar={view: maps, "range_time": maps})])
    with np.load(tmp_path / "set/maps/00000.npz", allow_pickle=False) as written:
        assert written.files == [view, "range_time"]
    np.testing.assert_array_equal(MapDataset(tmp_path / "set")[0].radar[view], maps)


def test_a_caption_may_hold_any_line_separator(tmp_path):
    separators = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    write_dataset(tmp_path / "set", [clip(caption=f"sits{separators}waves"), clip("b")])
    assert MapDataset(tmp_path / "set").captions[0] == f"sits{separators}waves"
    index = tmp_path / "set/clips.jsonl"
    index.write_bytes(index.read_bytes().replace(b"\n", b"\r\n"))
    assert MapDataset(tmp_path / "set").captions[0] == f"sits{separators}waves"


def test_a_dataset_made_by_hand_wants_little(tmp_path):
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


def test_a_single_npz_will_do(tmp_path):
    maps = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.savez(tmp_path / "x.npz", doppler=maps, captions=["sits", "waves"], lengths=[4, 2])
    read = MapDataset(tmp_path / "x.npz")
    assert [(c.id, c.caption, c.frames, c.split) for c in read] == [
        ("00000", "sits", 4, "train"),
        ("00001", "waves", 2, "train"),
    ]
    np.testing.assert_array_equal(read[1].radar["doppler"], maps[1, :, :2])
    np.savez(
        tmp_path / "y.npz",
        doppler=maps,
        captions=["sits", "waves"],
        ids=["p", "q"],
        splits=["test", "zeroshot"],
        sources=["s", "s"],
        labels=["", "wave"],
        class_names=["wave"],
        class_captions=["a person waves"],
        frame_rate=8.0,
    )
    read = MapDataset(tmp_path / "y.npz")
    assert (read[0].label, read[1].label, read.frame_rate) == (None, "wave", 8.0)
    assert read.class_captions == {"wave": "a person waves"}


def test_a_single_npz_may_hold_utf_8_and_lists_of_nothing(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        doppler=np.ones((2, 3, 4)),
        captions=np.array(["sitzt, geht über", "waves"]),
        class_names=[],
        class_captions=[],
    )
    np.savez(
        tmp_path / "y.npz",
        doppler=np.ones((2, 3, 4)),
        captions=np.array(["sitzt, geht über".encode(), b"waves"]),
        labels=[b"", b"w"],
        class_names=[b"w"],
        class_captions=["winkt, grüßt".encode()],
    )
    for name in ("x", "y"):
        read = MapDataset(tmp_path / f"{name}.npz")
        assert read.captions == ["sitzt, geht über", "waves"]
    assert [clip.label for clip in read] == [None, "w"]
    assert read.class_captions == {"w": "winkt, grüßt"}


ONE = {"m": np.ones((1, 3, 4)), "captions": ["x"]}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        (ONE | {"captions": [3]}, "'captions' must hold strings .*, got int64, the first 3"),
        (ONE | {"captions": [np.nan]}, "'captions' must hold strings .* float64, the first nan"),
        (ONE | {"captions": [True]}, "'captions' must hold strings .*, got bool"),
        (ONE | {"captions": [b"\xff"]}, "'captions' holds bytes that are not UTF-8"),
        (ONE | {"ids": [7]}, "'ids' must hold strings"),
        (ONE | {"splits": [0]}, "'splits' must hold strings"),
        (ONE | {"sources": [1.5]}, "'sources' must hold strings"),
        (ONE | {"labels": [0]}, "'labels' must hold strings"),
        (ONE | {"class_names": [0], "class_captions": ["x"]}, "'class_names' must hold strings"),
        (ONE | {"class_names": ["w"], "class_captions": [1]}, "'class_captions' must hold strings"),
        (ONE | {"class_names": "w", "class_captions": "x"}, "'class_names' must have one axis"),
        (ONE | {"class_names": ["w", "w"], "class_captions": ["x", "y"]}, "has 'w' twice"),
        (ONE | {"class_names": ["", ""], "class_captions": ["x", "y"]}, "has '' twice"),
        (ONE | {"class_names": ["w"], "class_captions": [""]}, "caption of class 'w' is empty"),
        ({"captions": ["x"]}, "wanted views"),
        ({"m": np.ones((2, 3, 4)), "captions": ["x"]}, r"'captions' must be \(2,\)"),
        ({"m": np.ones((1, 3, 4)), "captions": ["x"], "lengths": [5]}, r"lengths\[0\] is 5"),
        ({"m": np.ones((1, 3, 4)), "captions": ["x"], "capitons": ["x"]}, "did you mean"),
        ({"m": np.ones((1, 3, 4)), "n": np.ones((1, 3, 5)), "captions": ["x"]}, "'n' must be"),
        ({"m": np.ones((1, 3, 4), int), "captions": ["x"]}, "float array"),
        ({"m": np.ones((1, 3, 4)), "captions": np.array(["x"], object)}, "corrupt"),
        ({"m": np.ones((1, 3, 4)), "captions": ["x"], "frame_rate": "8 Hz"}, "number, got '8 Hz'"),
        ({"m": np.ones((1, 3, 4)), "captions": ["x"], "frame_rate": [8, 9]}, r"got \[8, 9\]"),
    ],
)
def test_a_bad_single_npz_is_told(tmp_path, arrays, told):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=told) as error:
        MapDataset(tmp_path / "bad.npz")
    assert "bad.npz" in str(error.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"id": "b"}, "'b'.*used twice"),
        ({"caption": " "}, "the caption is empty"),
        ({"caption": b"waves"}, "the caption must be a string, got b'waves'"),
        ({"caption": None}, "the caption must be a string, got None"),
        ({"permuted": ("x", 3)}, "a permuted caption must be a string, got 3"),
        ({"permuted": ("x", " ")}, "a permuted caption is empty"),
        ({"split": "tests"}, "did you mean 'test'"),
        ({"spans": ((0, 6),), "actions": ("x",)}, r"span \(0, 6\)"),
        ({"spans": ((0, 6),)}, "1 spans for 0 actions"),
        ({"permuted": ("a person does a",)}, "equals the caption"),
        ({"label": "wav"}, "label 'wav' has no class caption.*did you mean 'wave'"),
        ({"sources": ("tape 3",)}, "'tape 3' is also that of clip 'c'"),
        ({"radar": {"range_time": np.ones((4, 5))}}, "has views"),
        ({"radar": {}}, "has no map|has views"),
    ],
)
def test_clips_that_make_no_dataset_are_told(tmp_path, changed, told):
    clips = [*RICH[1:], clip(**{"id": "a"} | changed)]
    with pytest.raises(DataError, match=told):
        MapDataset.from_clips(clips, class_captions={"wave": "a person waves"})
    with pytest.raises(DataError, match=told):
        write_dataset(tmp_path / "set", clips, class_captions={"wave": "a person waves"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("maps", "told"),
    [
        (np.ones((4, 4)), "4 frames"),
        (np.ones((5, 5)), "5 bins"),
        (np.ones(4), "float array"),
        (np.ones((4, 5), complex), "float array"),
        (np.full((4, 5), np.nan), "NaN.*frame 0"),
        (np.where(np.arange(5) == 3, np.inf, np.ones((4, 1))), "frame 3"),
    ],
)
def test_bad_maps_are_told(maps, told):
    good = clip("b")
    radar = {"doppler_time": np.ones((3, 5)), "range_time": maps}
    with pytest.raises(DataError, match=f"'a'.*{told}"):
        MapDataset.from_clips([good, clip("a", radar=radar)])


def test_a_class_caption_that_is_none_is_told(unchecked_signatures):
    with pytest.raises(DataError, match="the caption of class 'wave' must be a string, got 3"):
        MapDataset.from_clips(RICH, class_captions={"wave": 3})


def test_no_clips_and_no_split():
    with pytest.raises(DataError, match="no clips"):
        MapDataset.from_clips([])
    with pytest.raises(DataError, match=r"'val'.*{'train': 1}"):
        MapDataset.from_clips([clip()]).subset("val")


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
    ("name", "damage", "told"),
    [
        ("maps/00000.npz", lambda p: p.unlink(), "no such file"),
        ("maps/00000.npz", truncate, "corrupt"),
        ("maps/00000.npz", flip, "corrupt"),
        ("maps/00000.npz", lambda p: p.write_bytes(b"\x80\x04K\x01."), "not an .npz"),
        ("maps/00000.npz", lambda p: np.savez(p, range_time=np.ones((4, 12))), "has views"),
        ("clips.jsonl", lambda p: p.unlink(), "cannot be read"),
        ("clips.jsonl", edit('"start": 5', '"start": 6'), "line 2: frames 6 to 13"),
        ("clips.jsonl", edit('"start": 5', '"strat": 5'), "did you mean 'start'"),
        ("clips.jsonl", edit('"id": "b", ', ""), "line 2: 'id' is missing"),
        ("clips.jsonl", edit('"id": "b"', '"id": 7'), "'id' must be str"),
        ("clips.jsonl", edit('"a person does b"', "null"), "'caption' must be str, got None"),
        ("clips.jsonl", edit('"a person does b"', "3"), "'caption' must be str, got 3"),
        ("clips.jsonl", edit('["waves, sits"]', "[3]"), "'permuted' must be a list of strings"),
        ("clips.jsonl", edit('"id": "b"', '"id": "b", "id": "c"'), "line 2.*'id' is given twice"),
        ("clips.jsonl", edit("[[0, 2], [2, 5]]", "[[0], [2, 5]]"), "'spans' must be"),
        ("clips.jsonl", edit("}\n", "\n"), "no JSON"),
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
def test_a_damaged_dataset_is_told_with_the_file(tmp_path, name, damage, told):
    write_dataset(tmp_path / "set", RICH[:2])
    damage(tmp_path / "set" / name)
    with pytest.raises(DataError, match=told) as error:
        MapDataset(tmp_path / "set")
    if told != "no clips":
        assert name in str(error.value)


def test_what_is_not_there_and_what_is_there_already(tmp_path):
    with pytest.raises(DataError, match="no such dataset"):
        MapDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"dataset\.json: missing"):
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
