"""The axes of a data set: kept on disk, given to its clips, and checked."""

import json

import numpy as np
import pytest

from clipseq.data import Axis, Clip, MapDataset, Radar, write_dataset
from clipseq.errors import DataError

MEL = Axis(label="frequency", unit="Hz", first=50.0, last=8000.0, values="power (dB)", scale=9.0)
JOINTS = Axis(label="joint", first=0, last=2)


def clip():
    maps = {"mel": np.zeros((4, 9), np.float32)}
    return Clip(id="a", signal=maps, paired={"joints": np.zeros((3, 5), np.float32)})


NAMES = {"modality": "audio", "paired_modality": "motion"}


def test_axes_are_written_read_and_given_to_clips(tmp_path):
    folder = write_dataset(
        tmp_path / "set", [clip()], axes={"mel": MEL}, paired_axes={"joints": JOINTS}, **NAMES
    )
    dataset = MapDataset(folder)
    assert dataset.axes == {"mel": MEL}
    assert dataset.paired_axes == {"joints": JOINTS}
    assert dataset[0].header.axes == {"mel": MEL}
    assert dataset[0].header.paired_modality == "motion"
    assert MapDataset.from_clips([clip()], **NAMES)[0].header.axes == {}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"mle": MEL}, r"axes must name views of the clips, \['mel'\], got 'mle': did you"),
        ({"mel": Axis(label="f", first=0.0, last=float("nan"))}, "first, last, scale and offset"),
        ({"mel": Axis(label="f", first=0.0, last=1.0, scale=0.0)}, "must be finite and scale not"),
    ],
)
def test_wrong_axes_are_refused(axes, message):
    with pytest.raises(DataError, match=message):
        MapDataset.from_clips([clip()], axes=axes, **NAMES)


def test_a_wrong_axis_on_disk_is_refused_with_its_file(tmp_path):
    folder = write_dataset(tmp_path / "set", [clip()], axes={"mel": MEL}, **NAMES)
    head = json.loads((folder / "dataset.json").read_text())
    head["axes"]["mel"]["frist"] = head["axes"]["mel"].pop("first")
    (folder / "dataset.json").write_text(json.dumps(head))
    with pytest.raises(DataError, match=r"dataset.json: axes of 'mel': .*frist"):
        MapDataset(folder)


def test_the_simulated_radar_knows_its_axes():
    radar = Radar()
    axes = radar.described_axes()
    for view, centres in radar.axes().items():
        assert axes[view].first == pytest.approx(centres[0])
        assert axes[view].last == pytest.approx(centres[-1])
    assert {axis.unit for axis in axes.values()} == {"m", "m/s", ""}
