"""The functions on single maps, against formulas and NumPy's own functions."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from clipseq.augment import (
    add_noise,
    add_tilt,
    blank,
    crop_spans,
    crop_time,
    mask_bins,
    mask_time,
    shift_bins,
    stretch_spans,
    stretch_time,
    views_of_channels,
)

numbers = st.floats(-100, 100, width=16)
maps = st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=numbers)
)


@given(maps, st.integers(1, 30))
def test_a_stretched_map_is_interpolated_between_the_centres_of_frames(values, frames):
    total = values.shape[1]
    stretched = stretch_time(values, frames)
    assert (stretched.shape, stretched.dtype) == ((len(values), frames), values.dtype)
    old, new = (np.arange(total) + 0.5) / total, (np.arange(frames) + 0.5) / frames
    expected = [np.interp(new, old, row.astype(np.float64)) for row in values]
    tolerance = {2: 0.3, 4: 1e-3, 8: 1e-9}[values.dtype.itemsize]
    np.testing.assert_allclose(stretched, expected, rtol=0, atol=tolerance)
    assert np.array_equal(stretch_time(values, total), values)


@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_a_stretched_span_is_where_its_frames_are(frames, stretched, data):
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start + 1, frames))
    inside = np.zeros((1, frames))
    inside[:, start:stop] = 1
    ((first, end),) = stretch_spans([(start, stop)], frames, stretched)
    assert 0 <= first < end <= stretched
    # More than half of a frame's width is in the span: the frame is in the moved span.
    shown = stretch_time(inside, stretched)[0]
    edge = max(1.0, stretched / frames)
    places = np.arange(stretched) + 0.5
    well_inside = (places > first + edge) & (places < end - edge)
    well_outside = (places < first - edge) | (places > end + edge)
    assert (shown[well_inside] == 1).all()
    assert (shown[well_outside] == 0).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(5, 80))
def test_neighbouring_spans_stay_neighbours(lengths, stretched):
    edges = [0, *np.cumsum(lengths).tolist()]
    total = edges[-1]
    spans = list(pairwise(edges))
    moved = stretch_spans(spans, total, max(stretched, total))
    assert [start for start, _ in moved] == [0, *[stop for _, stop in moved[:-1]]]
    assert moved[-1][1] == max(stretched, total)
    assert stretch_spans(spans, total, total) == tuple(spans)


@given(maps, st.data())
def test_crops_and_masks_touch_the_frames_that_they_name(values, data):
    bins, frames = values.shape
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start + 1, frames))
    before = values.copy()
    assert np.array_equal(crop_time(values, start, stop), values[:, start:stop])
    masked = mask_time(values, start, stop)
    outside = np.r_[:start, stop:frames]
    assert np.array_equal(masked[:, outside], values[:, outside])
    np.testing.assert_allclose(
        masked[:, start:stop], values.astype(np.float64).mean(), rtol=2e-3, atol=0.1
    )
    first = data.draw(st.integers(0, bins))
    hidden = mask_bins(values, first, bins)
    assert np.array_equal(hidden[:first], values[:first])
    assert len(np.unique(hidden[first:])) <= 1
    for unchanged in (mask_time(values, start, start), mask_bins(values, first, first)):
        assert np.array_equal(unchanged, values)
    assert np.array_equal(values, before)
    assert {masked.dtype, hidden.dtype} == {values.dtype}


@pytest.mark.parametrize("bounds", [(-1, 2), (2, 1), (0, 6)])
def test_frames_and_bins_that_do_not_exist_are_refused(bounds):
    values = np.zeros((5, 5), np.float32)
    for change in (crop_time, mask_time, mask_bins):
        with pytest.raises(ValueError, match=r"start and stop must .*, got \(-?\d, \d\)"):
            change(values, *bounds)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        stretch_time(values, 0)


def test_a_crop_never_cuts_into_an_action():
    assert crop_spans([(3, 5), (5, 9)], 2, 9) == ((1, 3), (3, 7))
    for start, stop in ((4, 9), (2, 8)):
        with pytest.raises(ValueError, match="enclose every span"):
            crop_spans([(3, 5), (5, 9)], start, stop)


@given(maps, st.integers(-15, 15))
def test_shifted_bins_are_padded_with_the_edge(values, bins):
    padded = np.pad(values, ((abs(bins), abs(bins)), (0, 0)), mode="edge")
    expected = padded[abs(bins) - bins :][: len(values)]
    assert np.array_equal(shift_bins(values, bins), expected)


@given(maps, st.floats(-2, 2), st.floats(-2, 2))
def test_gain_and_tilt_are_a_line_in_units_of_the_map(values, gain, tilt):
    changed = add_tilt(values, gain, tilt)
    wide = values.astype(np.float64)
    count = len(values)
    line = [0.0] if count == 1 else [2 * f / (count - 1) - 1 for f in range(count)]
    expected = wide + wide.std() * (gain + tilt * np.array(line))[:, None]
    tolerance = {2: 0.5, 4: 1e-3, 8: 1e-9}[values.dtype.itemsize]
    np.testing.assert_allclose(changed, expected, rtol=0, atol=tolerance)
    assert changed.dtype == values.dtype
    assert np.array_equal(add_tilt(values, 0.0), values)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_noise_is_relative_to_the_map(unit):
    values = unit * np.random.default_rng(0).normal(3, 2, (40, 500))
    noise = add_noise(values, 0.25, np.random.default_rng(1)) - values
    assert abs(noise.std() / (unit * 2) - 0.25) < 0.01
    assert abs(noise.mean()) < 0.01 * unit
    constant = np.full((3, 4), unit, np.float32)
    assert np.array_equal(add_noise(constant, 1.0, np.random.default_rng(0)), constant)
    assert np.array_equal(add_noise(values, 0.0, np.random.default_rng(0)), values)


def test_a_blank_map_is_its_mean():
    assert np.array_equal(blank(np.array([[1.0, 2.0], [3.0, 6.0]])), np.full((2, 2), 3.0))


def test_rows_that_do_not_resemble_their_neighbours_are_channels():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 400))
    smooth = np.array([np.convolve(column, np.ones(4), "same") for column in rows.T]).T
    signals = [
        {"mel": smooth[:, :200], "joints": rows[:, :200], "axes": smooth[:3, :200]},
        {"mel": smooth[:, 200:], "joints": rows[:, 200:], "axes": smooth[:3, 200:]},
    ]
    assert views_of_channels(signals) == {"joints", "axes"}
    shuffled = [{"mel": signal["mel"][rng.permutation(20)]} for signal in signals[:1]]
    assert views_of_channels(shuffled) == {"mel"}
    silent = {"mel": np.zeros((20, 5))}
    assert views_of_channels([silent]) == {"mel"}
