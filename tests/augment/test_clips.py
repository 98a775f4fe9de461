"""A clip is augmented as a whole: its views agree in time, and its spans follow."""

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipseq.augment import AugmentConfig, augment_clip, clip_generator
from clipseq.data import Clip, MapDataset
from clipseq.errors import ConfigError

TIME_ALONE = AugmentConfig(
    stretch=0.5, mask_time=0.0, mask_bins=0.0, shift=0.0, gain=0.0, tilt=0.0, noise=0.0, drop_view=0
)


@st.composite
def clips(draw):
    """Draw clips of two views and a second signal, whose rows all count the actions."""
    piece = st.tuples(st.integers(0, 6), st.integers(3, 20))
    pieces = draw(st.lists(piece, min_size=1, max_size=4))
    spans, clock = [], 0
    for pause, length in pieces:
        spans.append((clock + pause, clock + pause + length))
        clock += pause + length
    total = clock + draw(st.integers(0, 6))
    level = np.zeros(total, np.float32)
    for number, (start, stop) in enumerate(spans, 1):
        level[start:stop] = number
    return Clip(
        id="a",
        signal={"mel": np.tile(level, (9, 1)), "pitch": np.tile(level, (2, 1))},
        paired={"joints": np.tile(level.repeat(2), (4, 1))},
        caption="something happens",
        actions=tuple(f"action {k}" for k in range(len(spans))),
        spans=tuple(spans),
    )


configs = st.builds(
    AugmentConfig,
    strength=st.floats(0, 3),
    stretch=st.floats(0, 1),
    crop=st.floats(0, 1),
    mask_time=st.floats(0, 1),
    mask_bins=st.floats(0, 1),
    shift=st.floats(0, 1),
    gain=st.floats(0, 2),
    tilt=st.floats(0, 2),
    noise=st.floats(0, 2),
    drop_view=st.floats(0, 1),
    channels=st.none() | st.just(("pitch",)),
)


@given(clips(), configs, st.integers(0, 2**32))
def test_any_strengths_give_a_valid_clip(clip, config, seed):
    before = {view: values.copy() for view, values in (clip.signal | clip.paired).items()}
    augmented, again = (augment_clip(clip, config, clip_generator(seed, 3, 5)) for _ in range(2))
    # The checks of a data set: equal lengths, spans within them, finite floats.
    MapDataset.from_clips([augmented], modality="audio", paired_modality="motion")
    for maps, old, same in (
        (augmented.signal, clip.signal, again.signal),
        (augmented.paired, clip.paired, again.paired),
    ):
        for view, values in maps.items():
            assert values.dtype == np.float32
            assert len(values) == len(old[view])
            assert np.array_equal(values, same[view])
    assert (augmented.caption, augmented.actions) == (clip.caption, clip.actions)
    for view, values in (clip.signal | clip.paired).items():
        assert np.array_equal(values, before[view]), "the clip itself was changed"


@given(clips(), st.integers(0, 2**32))
def test_the_spans_follow_and_all_views_agree_in_time(clip, seed):
    augmented = augment_clip(clip, TIME_ALONE, clip_generator(seed, 0, 0))
    level = augmented.signal["mel"][0]
    for values in augmented.signal.values():
        assert np.array_equal(values, np.tile(level, (len(values), 1)))
    edge = max(1.0, augmented.frames / clip.frames, clip.frames / augmented.frames) + 0.5
    places = np.arange(augmented.frames) + 0.5
    for number, (start, stop) in enumerate(augmented.spans, 1):
        inside = (places > start + edge) & (places < stop - edge)
        assert np.allclose(level[inside], number)
    # Nothing of an action is lost: the seconds of each are those of before, stretched.
    length = sum(stop - start for start, stop in clip.spans)
    kept = sum(stop - start for start, stop in augmented.spans)
    assert length / 1.5 - len(clip.spans) <= kept <= length * 1.5 + len(clip.spans)
    # The second signal has twice the frames, and is at the same action at the same time.
    other = augmented.paired["joints"][0]
    shown = other[np.minimum((places / augmented.frames * len(other)).astype(int), len(other) - 1)]
    for number, (start, stop) in enumerate(augmented.spans, 1):
        margin = edge + 3
        inside = (places > start + margin) & (places < stop - margin)
        assert np.allclose(shown[inside], number)


@given(clips(), st.integers(0, 2**32))
def test_a_mask_over_time_leaves_half_of_every_action(clip, seed):
    config = attrs.evolve(TIME_ALONE, stretch=0.0, crop=0.0, mask_time=1.0)
    augmented = augment_clip(clip, config, clip_generator(seed, 0, 0))
    masks = []
    for view, values in augmented.signal.items():
        mean = clip.signal[view].mean(dtype=np.float64)
        masks.append(np.isclose(values, mean).all(axis=0) & ~np.isclose(clip.signal[view][0], mean))
        assert np.array_equal(values[:, ~masks[-1]], clip.signal[view][:, ~masks[-1]])
    assert np.array_equal(masks[0], masks[1])
    for start, stop in clip.spans:
        assert masks[0][start:stop].sum() <= (stop - start) / 2


@given(clips(), st.integers(0, 2**32))
def test_strength_0_changes_nothing(clip, seed):
    nothing = attrs.evolve(TIME_ALONE, stretch=0.0, crop=0.0)
    for config in (AugmentConfig(strength=0.0), nothing):
        augmented = augment_clip(clip, config, clip_generator(seed, 0, 0))
        assert augmented.spans == clip.spans
        for maps, old in ((augmented.signal, clip.signal), (augmented.paired, clip.paired)):
            assert all(np.array_equal(maps[view], old[view]) for view in old)


def test_a_clip_without_spans_keeps_all_its_frames():
    values = np.arange(20, dtype=np.float32)[None]
    clip = Clip(id="a", signal={"mel": values}, caption="something happens")
    config = attrs.evolve(TIME_ALONE, stretch=0.0)
    for seed in range(20):
        augmented = augment_clip(clip, config, clip_generator(seed, 0, 0))
        assert np.array_equal(augmented.signal["mel"], values)


def test_silence_is_cut_off_at_both_ends():
    values = np.arange(40, dtype=np.float32)[None]
    clip = Clip(id="a", signal={"mel": values}, caption="c", actions=("b",), spans=((10, 20),))
    config = attrs.evolve(TIME_ALONE, stretch=0.0)
    seen = set()
    for seed in range(200):
        augmented = augment_clip(clip, config, clip_generator(seed, 0, 0))
        first, last = augmented.signal["mel"][0, [0, -1]].tolist()
        assert first <= 10
        assert last >= 19
        ((start, stop),) = augmented.spans
        assert augmented.signal["mel"][0, start:stop].tolist() == list(range(10, 20))
        seen.add((first, last))
    assert len({first for first, _ in seen}) > 5
    assert len({last for _, last in seen}) > 10


def test_every_change_happens_and_channels_stay_in_their_rows():
    rng = np.random.default_rng(0)
    clip = Clip(
        id="a",
        signal={"mel": rng.normal(size=(20, 30)), "joints": rng.normal(size=(20, 30))},
        caption="something happens",
    )
    off = attrs.evolve(TIME_ALONE, stretch=0.0, crop=0.0)
    for name in ("stretch", "mask_time", "mask_bins", "shift", "gain", "tilt", "noise"):
        config = attrs.evolve(off, channels=("joints",), **{name: 0.5})
        changed = [augment_clip(clip, config, clip_generator(s, 0, 0)).signal for s in range(20)]
        assert any(not np.array_equal(maps["mel"], clip.signal["mel"]) for maps in changed), name
        kept = all(np.array_equal(maps["joints"], clip.signal["joints"]) for maps in changed)
        assert kept == (name in ("shift", "tilt")), name


def test_a_dropped_view_says_nothing_and_one_view_always_stays():
    rng = np.random.default_rng(0)
    views = {name: rng.normal(size=(6, 30)).astype(np.float32) for name in ("a", "b", "c")}
    config = attrs.evolve(TIME_ALONE, stretch=0.0, drop_view=0.5)
    dropped = []
    for seed in range(300):
        rng = clip_generator(seed, 0, 0)
        augmented = augment_clip(Clip(id="a", signal=views, caption="c"), config, rng).signal
        dropped.append([view for view, values in augmented.items() if np.ptp(values) == 0])
    assert {len(names) for names in dropped} == {0, 1}
    assert {names[0] for names in dropped if names} == {"a", "b", "c"}
    assert 0.4 < np.mean([len(names) for names in dropped]) < 0.6
    alone = Clip(id="a", signal={"a": views["a"]}, caption="c")
    config = attrs.evolve(config, drop_view=1.0)
    augmented = augment_clip(alone, config, clip_generator(0, 0, 0))
    assert np.array_equal(augmented.signal["a"], views["a"])


def test_the_numbers_of_a_clip_depend_on_seed_batch_and_clip():
    draws = {
        clip_generator(seed, batch, index).integers(2**62).item()
        for seed in range(3)
        for batch in range(3)
        for index in range(3)
    }
    assert len(draws) == 27


def test_one_strength_leaves_the_draws_of_the_others_alone():
    rng = np.random.default_rng(0)
    clip = Clip(id="a", signal={"mel": rng.normal(size=(20, 40))}, caption="c")
    lengths = {
        augment_clip(clip, AugmentConfig(**changes), clip_generator(7, 0, 0)).frames
        for changes in ({}, {"noise": 0.0}, {"crop": 0.0, "mask_time": 0.0}, {"shift": 0.2})
    }
    assert len(lengths) == 1


@pytest.mark.parametrize("change", [{"crop": 1.5}, {"shift": -0.1}, {"gain": float("nan")}])
def test_strengths_out_of_range_are_refused(change):
    (name,) = change
    with pytest.raises(ConfigError, match=rf"{name} must be .*, got"):
        AugmentConfig(**change)
