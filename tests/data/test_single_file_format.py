"""A single .npz as a data set: what it may hold, older files, and what is refused."""

import numpy as np
import pytest

from clipseq.data import MapDataset, write_dataset
from clipseq.errors import DataError


def test_an_older_npz_made_by_hand_is_read_as_radar(tmp_path):
    maps = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.savez(tmp_path / "x.npz", doppler=maps, captions=["sits", "waves"], lengths=[4, 2])
    read = MapDataset(tmp_path / "x.npz")
    assert [(c.id, c.caption, c.frames, c.split) for c in read] == [
        ("00000", "sits", 4, "train"),
        ("00001", "waves", 2, "train"),
    ]
    np.testing.assert_array_equal(read[1].signal["doppler"], maps[1, :, :2])
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
    assert (read.modality, read.paired_modality) == ("radar", None)


def test_a_single_npz_may_hold_utf_8_and_empty_lists(tmp_path):
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


def test_a_single_npz_may_name_its_modality_in_either_type_of_string(tmp_path):
    for modality in ("sonar", b"sonar", ["sonar"]):
        np.savez(tmp_path / "x.npz", mel=np.ones((1, 3, 4)), captions=["x"], modality=modality)
        assert MapDataset(tmp_path / "x.npz").modality == "sonar"


def test_a_view_may_have_the_name_of_a_column(tmp_path):
    np.savez(tmp_path / "x.npz", modality=np.ones((1, 3, 4)), captions=["x"])
    read = MapDataset(tmp_path / "x.npz")
    assert (read.modality, read.views) == ("radar", {"modality": 3})


@pytest.mark.parametrize("captions", [{}, {"captions": ["beeps", "hums"]}])
def test_a_single_npz_may_hold_a_second_signal(tmp_path, captions):
    mel, joints = np.arange(24.0).reshape(2, 3, 4), np.arange(60.0).reshape(2, 6, 5)
    np.savez(
        tmp_path / "x.npz",
        **{"mel": mel, "paired/joints": joints, "paired/mel": joints[:, :1]},
        **captions,
        modality="audio",
        paired_modality="motion",
        lengths=[2, 4],
        paired_lengths=[5, 3],
        frame_rate=100,
        paired_frame_rate=30,
    )
    read = MapDataset(tmp_path / "x.npz")
    assert (read.modality, read.paired_modality) == ("audio", "motion")
    assert (read.frame_rate, read.paired_frame_rate) == (100, 30)
    assert read.captions == captions.get("captions", ["", ""])
    np.testing.assert_array_equal(read[0].signal["mel"], mel[0, :, :2])
    np.testing.assert_array_equal(read[1].signal["mel"], mel[1])
    np.testing.assert_array_equal(read[0].paired["joints"], joints[0])
    np.testing.assert_array_equal(read[1].paired["joints"], joints[1, :, :3])
    np.testing.assert_array_equal(read[1].paired["mel"], joints[1, :1, :3])


ONE = {"m": np.ones((1, 3, 4)), "captions": ["x"]}
TWO = ONE | {"paired/n": np.ones((1, 2, 7)), "paired_modality": "motion"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (ONE | {"captions": [3]}, "'captions' must hold strings .*, got int64, the first 3"),
        (ONE | {"captions": [np.nan]}, "'captions' must hold strings .* float64, the first nan"),
        (ONE | {"captions": [True]}, "'captions' must hold strings .*, got bool"),
        (ONE | {"captions": [b"\xff"]}, "'captions' must hold UTF-8"),
        (ONE | {"ids": [7]}, "'ids' must hold strings"),
        (ONE | {"splits": [0]}, "'splits' must hold strings"),
        (ONE | {"sources": [1.5]}, "'sources' must hold strings"),
        (ONE | {"labels": [0]}, "'labels' must hold strings"),
        (ONE | {"class_names": [0], "class_captions": ["x"]}, "'class_names' must hold strings"),
        (ONE | {"class_names": ["w"], "class_captions": [1]}, "'class_captions' must hold strings"),
        (ONE | {"class_names": "w", "class_captions": "x"}, "'class_names' must have one axis"),
        (ONE | {"class_names": ["w", "w"], "class_captions": ["x", "y"]}, "got 'w' twice"),
        (ONE | {"class_names": ["", ""], "class_captions": ["x", "y"]}, "got '' twice"),
        (
            ONE | {"class_names": ["w"], "class_captions": [""]},
            "caption of class 'w' must not be empty",
        ),
        ({"captions": ["x"]}, "must hold views"),
        ({"m": np.ones((2, 3, 4)), "captions": ["x"]}, r"'captions' must be \(2,\)"),
        (
            {"m": np.ones((1, 3, 4)), "captions": ["x"], "lengths": [5]},
            r"lengths\[0\] must be 1 to 4, got 5",
        ),
        ({"m": np.ones((1, 3, 4)), "captions": ["x"], "capitons": ["x"]}, "did you mean"),
        ({"m": np.ones((1, 3, 4)), "n": np.ones((1, 3, 5)), "captions": ["x"]}, "'n' must be"),
        ({"m": np.ones((1, 3, 4), int), "captions": ["x"]}, "float array"),
        ({"m": np.ones((1, 3, 4)), "captions": np.array(["x"], object)}, "dtype=str"),
        ({"m": np.ones((1, 3, 4)), "captions": ["x"], "frame_rate": "8 Hz"}, "number, got '8 Hz'"),
        ({"m": np.ones((1, 3, 4)), "captions": ["x"], "frame_rate": [8, 9]}, r"got \[8, 9\]"),
        (ONE | {"modality": 3}, "'modality' must hold strings"),
        (ONE | {"modality": ["a", "b"]}, "modality must be one string"),
        (ONE | {"modality": ""}, "modality must be a name"),
        (ONE | {"paired_modality": "motion"}, "got 'motion' for clips without one"),
        (ONE | {"paired_lengths": [3]}, "'paired_lengths' must be absent"),
        (TWO | {"paired/n": np.ones((2, 2, 7))}, r"'paired/n' must be \(1, 2, 7\)"),
        (TWO | {"paired/o": np.ones((1, 2, 6))}, r"'paired/o' must be \(1, 2, 7\)"),
        (TWO | {"paired_lengths": [8]}, r"paired_lengths\[0\] must be 1 to 7, got 8"),
        (TWO | {"paired_frame_rate": "x"}, "paired_frame_rate must be one number"),
        ({k: v for k, v in TWO.items() if k != "paired_modality"}, "got None for clips with one"),
        ({k: v for k, v in TWO.items() if k != "m"}, "must hold views"),
        (ONE | {"frame_rate": np.nan}, "frame_rate must be a positive, finite number"),
        (ONE | {"frame_rate": 0}, "frame_rate must be a positive, finite number"),
        (ONE | {"frame_rate": -3.0}, "frame_rate must be a positive, finite number"),
        (TWO | {"paired_frame_rate": np.inf}, "paired_frame_rate must be a positive, finite"),
        (
            {"m": np.ones((1, 9, 3)), "captions": ["x"], "lengths": [7]},
            r"lengths\[0\] must be 1 to 3, got 7; .* transpose them with .transpose\(0, 2, 1\)",
        ),
        (
            {"m": np.ones((1, 9, 3)), "n": np.ones((1, 9, 4)), "captions": ["x"]},
            r"'n' must be .*transpose",
        ),
        ({"m": np.ones((1, 0, 3)), "captions": ["x"]}, "at least 1, got 0 bins"),
        ({"m": np.full((1, 2, 3), 1e300), "captions": ["x"]}, "finite, also in float32"),
        (ONE | {"permuted": ["y"]}, r"'permuted' must be \(1, A\)"),
        (ONE | {"permuted": [[3]]}, "'permuted' must hold strings"),
        (ONE | {"permuted": [["", "y"]]}, r"permuted\[0\] must have '' at its end only"),
        (ONE | {"actions": [["a"], ["b"]]}, r"'actions' must be \(1, A\)"),
        (ONE | {"spans": [[[0, 1]]]}, "'spans' must be .* for 0 actions"),
        (
            ONE | {"actions": [["a"]], "spans": [[[0.0, 1.0]]]},
            "'spans' must be .*two whole",
        ),
        (ONE | {"actions": [["a", "b"]], "spans": [[[0, 1]]]}, "'spans' must be .* for 2 actions"),
        (ONE | {"actions": [["a"]], "spans": [[[0, 9]]]}, "a span must lie in its 4 frames"),
    ],
)
def test_a_bad_single_npz_is_refused_with_its_name(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        MapDataset(tmp_path / "bad.npz")
    assert "bad.npz" in str(error.value)


def test_a_single_npz_holds_what_a_folder_does(tmp_path):
    """Permuted captions, actions and spans, of clips that have different numbers of them."""
    maps = np.random.default_rng(0).normal(size=(2, 3, 9))
    np.savez(
        tmp_path / "one.npz",
        m=maps,
        captions=["sit, wave", "fall"],
        lengths=[9, 6],
        splits=["test", "test"],
        permuted=[["wave, sit"], [""]],
        actions=[["sit", "wave"], ["fall", ""]],
        spans=[[[0, 4], [4, 9]], [[1, 6], [-1, -1]]],
    )
    one = MapDataset(tmp_path / "one.npz")
    write_dataset(
        tmp_path / "folder", [one[0], one[1]], modality="radar", frame_rate=one.frame_rate
    )
    for read in (one, MapDataset(tmp_path / "folder")):
        assert [clip.permuted for clip in (read[0], read[1])] == [("wave, sit",), ()]
        assert [clip.actions for clip in (read[0], read[1])] == [("sit", "wave"), ("fall",)]
        assert [clip.spans for clip in (read[0], read[1])] == [((0, 4), (4, 9)), ((1, 6),)]
        np.testing.assert_array_equal(read[1].signal["m"], maps[1, :, :6].astype(np.float32))
