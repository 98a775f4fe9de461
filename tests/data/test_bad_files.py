"""Files that do not hold data: refused at once, by name, without a hang and without pickle."""

import json
import os
import socket
import zipfile

import numpy as np
import pytest
from example_clips import RICH

from clipseq.data import MapDataset, radhar_dataset, simulate, write_dataset
from clipseq.errors import DataError

DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "set", RICH[:2])
    return tmp_path / "set"


def refuse(folder, message, *names):
    with pytest.raises(DataError, match=message) as error:
        MapDataset(folder)
    assert all(name in str(error.value) for name in names)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../other.npz", "maps/../../other.npz", "C:/maps.npz", "..\\other.npz", ""],
)
def test_a_file_outside_the_folder_is_refused(folder, name):
    index = folder / "clips.jsonl"
    lines = [json.loads(line) | {"file": name} for line in index.read_text().splitlines()]
    index.write_text("\n".join(map(json.dumps, lines)))
    refuse(folder, "line 1: a file must be named relative to the folder", "clips.jsonl")


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def connection(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
@pytest.mark.parametrize("name", ["dataset.json", "clips.jsonl", "maps/00000.npz"])
@pytest.mark.parametrize(
    ("put", "what"),
    [(pipe, "a pipe"), (device, "a device"), (connection, "a socket"), (os.mkdir, "a folder")],
)
def test_only_regular_files_are_read(folder, name, put, what):
    (folder / name).unlink()
    put(folder / name)
    refuse(folder, f"must be a regular file, got {what}", name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_no_data_set(tmp_path):
    pipe(tmp_path / "x.npz")
    refuse(tmp_path / "x.npz", "must be a regular file, got a pipe")


def test_a_linked_file_is_read(folder, tmp_path):
    """The caches of model hubs link to their files."""
    (folder / "maps" / "00000.npz").rename(tmp_path / "blob")
    (folder / "maps" / "00000.npz").symlink_to(tmp_path / "blob")
    assert len(MapDataset(folder)) == 2


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("dataset.json", '"version": 1', f'"version": {DEEP}', "nested too deeply"),
        ("clips.jsonl", '"id": "a"', f'"id": {DEEP}', "line 1: .*nested too deeply"),
        ("dataset.json", '"version": 1', '"version": 1, "frame_rate": NaN', "NaN is no number"),
        ("dataset.json", '"version": 1', '"version": 1, "frame_rate": 1e999', "positive, finite"),
        ("dataset.json", '"version": 1', '"version": 1, "frame_rate": 0', "positive, finite"),
        ("dataset.json", '"version": 1', '"version": 1, "frame_rate": true', "positive, finite"),
        (
            "dataset.json",
            '"version": 1',
            '"version": 1, "rate": 8.0',
            "a key must be one of .*got 'rate'",
        ),
        ("dataset.json", '"version": 1', '"version": 1, "colour": 8', "belong under 'about'"),
        ("dataset.json", '"version": 1', '"version": ' + "9" * 5000, "cannot be read"),
        ("clips.jsonl", '"id": "a"', '"id": "\\ud800"', "half of a surrogate pair"),
        ("clips.jsonl", '"start": 5', '"start": ' + "9" * 30, "must lie in the"),
    ],
)
def test_odd_json_is_refused(folder, name, old, new, message):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refuse(folder, message, *([] if "surrogate" in message else [name]))


def test_a_byte_order_mark_and_notes_of_ones_own_are_read(folder):
    head = json.loads((folder / "dataset.json").read_text()) | {"about": {"licence": "mine"}}
    (folder / "dataset.json").write_text("\ufeff" + json.dumps(head), encoding="utf-8")
    index = folder / "clips.jsonl"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes().replace(b"\n", b"\r\n"))
    assert len(MapDataset(folder)) == 2
    index.write_bytes(b"\xff" + index.read_bytes())
    refuse(folder, "must be in UTF-8", "clips.jsonl")


def test_maps_on_their_side_are_named(folder):
    path = folder / "maps" / "00000.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{view: values.T for view, values in arrays.items()})
    refuse(folder, r"it is \(T, F\), so transpose it", "00000.npz")


def npy(header, data=b"", version=b"\x01\x00"):
    text = header.encode().ljust(117) + b"\n"
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3), }"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"notes.txt": b"x"}, "every member must be an array"),
        ({"m.npy": npy(GOOD.replace("2, 3", "2, 3000000000000"))}, "got 0; write it again"),
        ({"m.npy": npy(GOOD.replace("2, 3", "-2, -3"), bytes(24))}, "corrupt|whole numbers"),
        ({"m.npy": npy(GOOD.replace("<f4", "|O"), bytes(24))}, "pickle"),
        ({"m.npy": npy(GOOD.replace("'<f4'", "[('a', '<f4')]"), bytes(24))}, "has fields"),
        ({"m.npy": npy(GOOD, bytes(25))}, "got 25"),
        ({"m.npy": npy(GOOD, bytes(24), b"\x03\x00")}, "version 1.0 or 2.0"),
        ({"m.npy": npy("__import__('os').abort()")}, "corrupt"),
        ({"m.npy": npy("(" * 110)}, "corrupt"),
        ({"m.npy": b""}, "corrupt"),
        ({"m.npy": b"\x80\x04K\x01."}, "corrupt"),
    ],
)
def test_an_archive_with_odd_members_is_refused(tmp_path, members, message):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    refuse(path, message, "x.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m.npy", npy(GOOD, bytes(24)))
        archive.writestr("m.npy", npy(GOOD, bytes(24)))
    refuse(path, "the array 'm' must be there once", "x.npz")


@pytest.mark.parametrize(("offset", "value"), [(6, 1), (8, 99)])
def test_an_encrypted_or_unknown_member_is_refused(tmp_path, offset, value):
    """The flags and the method of compression, in both headers of the member."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m.npy", npy(GOOD, bytes(24)))
    data = bytearray(path.read_bytes())
    for signature, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        data[data.index(signature) + offset + shift] = value
    path.write_bytes(bytes(data))
    refuse(path, "corrupt", "x.npz")


@pytest.mark.parametrize("read", [radhar_dataset, lambda p: simulate(p.parent / "s", motion=p)])
@pytest.mark.parametrize("name", ["radhar_maps", "uiprmd_points"])
def test_recordings_of_another_content_are_refused(tmp_path, read, name):
    path = tmp_path / "x.npz"
    np.savez(path, fps=np.nan, label=[7], class_names=["x"], points_delta2=np.zeros((20, 3, 4)))
    with pytest.raises(DataError, match=r"x\.npz"):
        read(path)
