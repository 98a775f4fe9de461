"""Small clips for the tests of this folder."""

import numpy as np

from clipseq.data import Clip

FIELDS = ("id", "caption", "actions", "spans", "permuted", "sources", "split", "label")


def clip(id="a", frames=5, **fields):
    """Make a clip with two views, one of them in float16."""
    rng = np.random.default_rng(len(id) + frames)
    signal = {
        "range_time": rng.normal(size=(4, frames)).astype(np.float32),
        "doppler_time": rng.normal(size=(3, frames)).astype(np.float16),
    }
    return Clip(**{"id": id, "signal": signal, "caption": f"a person does {id}"} | fields)


def pair(id="a", frames=5, paired_frames=8, **fields):
    """Make a clip with a second signal, which has a view of the same name as the first."""
    rng = np.random.default_rng(len(id) + paired_frames)
    paired = {
        "joints": rng.normal(size=(6, paired_frames)).astype(np.float32),
        "range_time": rng.normal(size=(2, paired_frames)).astype(np.float16),
    }
    return clip(id, frames, **{"paired": paired} | fields)


def assert_same(one, two):
    """Assert that two clips agree in every field; the maps of `two` may have become float32."""
    for name in FIELDS:
        assert getattr(one, name) == getattr(two, name)
    for mine, read in ((one.signal, two.signal), (one.paired, two.paired)):
        assert mine.keys() == read.keys()
        for view, values in mine.items():
            np.testing.assert_array_equal(values.astype(np.float32), read[view])


RICH = (
    clip("a", 5, actions=("sit", "wave"), spans=((0, 2), (2, 5)), permuted=("waves, sits",)),
    clip("b", 7, sources=("tape 1", "tape 2"), split="train"),
    clip("c", 1, sources=("tape 3",), split="test"),
    clip("d", 2, sources=("tape 3",), split="zeroshot", label="wave", actions=("wave",)),
)
"""Clips that use every field, with CLASSES as their class captions."""

CLASSES = {"wave": "a person waves"}

PAIRS = (pair("a", 5, 8), pair("bc", 7, 3, split="test"))
"""Clips with a second signal and captions."""
