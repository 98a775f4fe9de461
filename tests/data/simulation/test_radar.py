"""The radar's maps agree with a cube simulated term by term, and with the formulas."""

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipseq.data.simulation.radar import (
    AZIMUTH,
    DECIBELS,
    DOPPLER,
    RANGE,
    Radar,
    add_noise,
    echo_power,
    noise_power,
    observe,
    resample,
    standardise,
)

C = 299_792_458.0
SMALL = Radar(samples=16, chirps=12, antennas=5, azimuth_bins=9, bandwidth_hz=4e8, noise=0.0)


def slow_cube(radar, start, velocity, pull, rcs):
    """Return the IF cube (samples, chirps, antennas) of one frame, term by term in float64.

    Scatterers are at start + velocity t + pull t^2 / 2, with t = 0 at the burst's centre.
    """
    chirp_times = (np.arange(radar.chirps) - (radar.chirps - 1) / 2) * radar.chirp_interval_s
    wavelength = C / radar.carrier_hz
    slope_per_sample = 2 * radar.bandwidth_hz / (C * radar.samples)  # turns per metre
    eye = np.array([0, 0, radar.height_m])
    cube = np.zeros((radar.samples, radar.chirps, radar.antennas), complex)
    for p, v, a, sigma in zip(start, velocity, pull, rcs, strict=True):
        here = p - eye
        distance = np.linalg.norm(here)
        sine = -here[1] / distance
        for m, t in enumerate(chirp_times):
            phase = 4 * np.pi * np.linalg.norm(here + t * v + t**2 / 2 * a) / wavelength
            for k in range(radar.antennas):
                n = np.arange(radar.samples)
                cube[:, m, k] += (
                    np.sqrt(sigma)
                    / distance**2
                    * np.exp(1j * (phase + 2 * np.pi * slope_per_sample * distance * n))
                    * np.exp(1j * np.pi * k * sine)
                )
    return cube


def slow_maps(radar, cube):
    """Return the power of the windowed 3D FFT, summed over the other two axes of each map."""
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = cube.shape[axis]
        cube = cube * np.hanning(cube.shape[axis] + 2)[1:-1].reshape(shape)
    cells = np.fft.fftn(cube, s=(radar.samples, radar.chirps, radar.azimuth_bins), axes=(0, 1, 2))
    power = np.fft.fftshift(np.abs(cells) ** 2, axes=(1, 2))
    return {RANGE: power.sum((1, 2)), DOPPLER: power.sum((0, 2)), AZIMUTH: power.sum((0, 1))}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scatterers=st.integers(1, 6),
    chirps=st.integers(1, 12),
    antennas=st.integers(1, 5),
)
def test_maps_are_those_of_the_simulated_cube(seed, scatterers, chirps, antennas):
    radar = attrs.evolve(SMALL, chirps=chirps, antennas=antennas)
    rng = np.random.default_rng(seed)
    start = np.stack(
        [
            rng.uniform(1.5, 5, scatterers),
            rng.uniform(-1, 1, scatterers),
            rng.uniform(0, 2, scatterers),
        ],
        axis=-1,
    )
    velocity = rng.uniform(-3, 3, (scatterers, 3))
    pull = rng.uniform(-800, 800, (scatterers, 3))  # m/s^2: bends the phase by about a turn
    rcs = rng.uniform(0.01, 1, scatterers)
    t = (radar.burst_times(1) - 0.5 / radar.frame_rate)[..., None, None]
    fast = echo_power(radar, start + t * velocity + t**2 / 2 * pull, rcs)
    slow = slow_maps(radar, slow_cube(radar, start, velocity, pull, rcs))
    for view, power in slow.items():
        np.testing.assert_allclose(fast[view][:, 0], power, rtol=1e-3, atol=1e-3 * power.max())


@settings(max_examples=25, deadline=None)
@given(distance=st.floats(1.5, 8.0), rate=st.floats(-5.0, 5.0), sine=st.floats(-0.7, 0.7))
def test_a_moving_point_lies_where_the_formulas_say(distance, rate, sine):
    radar = Radar(noise=0.0)
    line = np.array([np.sqrt(1 - sine**2), -sine, 0.0])  # y is left, the sine counts to the right
    eye = np.array([0.0, 0.0, radar.height_m])
    t = radar.burst_times(1)[..., None, None]
    points = eye + (distance + (t - t[:, 1:2]) * rate) * line
    power = echo_power(radar, points, np.ones(1))
    bins = {view: int(p[:, 0].argmax()) for view, p in power.items()}
    # range resolution c / 2B
    assert abs(bins[RANGE] - distance / (C / (2 * radar.bandwidth_hz))) <= 0.51
    # Doppler 2v / lambda, bins of 1 / burst
    doppler_hz = 2 * rate / (C / radar.carrier_hz)
    burst_s = radar.chirps * radar.chirp_interval_s
    assert abs(bins[DOPPLER] - radar.chirps // 2 - doppler_hz * burst_s) <= 0.51
    assert abs(bins[AZIMUTH] - radar.azimuth_bins // 2 - sine / 2 * radar.azimuth_bins) <= 0.6
    axes = radar.axes()
    assert axes[RANGE][bins[RANGE]] == pytest.approx(distance, abs=0.08)
    assert axes[DOPPLER][bins[DOPPLER]] == pytest.approx(rate, abs=0.11)
    assert axes[AZIMUTH][bins[AZIMUTH]] == pytest.approx(sine, abs=0.04)


def test_power_falls_with_the_fourth_power_of_range_and_grows_with_the_cross_section():
    radar = Radar(noise=0.0)

    def total(distance, rcs):
        points = np.full((1, 3, 1, 3), [distance, 0.0, radar.height_m])
        return echo_power(radar, points, np.array([rcs]))[RANGE].sum()

    assert total(2.0, 1.0) / total(4.0, 1.0) == pytest.approx(16, rel=1e-4)
    assert total(3.0, 0.5) / total(3.0, 0.1) == pytest.approx(5, rel=1e-4)


def test_noise_has_the_mean_variance_and_correlation_of_noise_in_the_cube():
    radar = attrs.evolve(SMALL, noise=3e-3)
    rng = np.random.default_rng(0)
    start, still, rcs = np.array([[2.5, 0.3, 1.0]]), np.zeros((1, 3)), np.array([0.5])
    cube = slow_cube(radar, start, still, still, rcs)
    trials = 4000
    scale = np.sqrt(radar.noise / 2)
    drawn = []
    for _ in range(trials):
        noise = scale * (rng.standard_normal(cube.shape) + 1j * rng.standard_normal(cube.shape))
        drawn.append(slow_maps(radar, cube + noise))
    clean = slow_maps(radar, cube)
    many = {view: np.repeat(p[:, None], trials, axis=1) for view, p in clean.items()}
    ours = add_noise(radar, many, rng)
    for view in clean:
        slow = np.stack([d[view] for d in drawn], axis=1)
        fast = ours[view]
        spread = slow.std(axis=1)
        assert np.all(np.abs(fast.mean(1) - slow.mean(1)) < 5 * spread * np.sqrt(2 / trials)), view
        np.testing.assert_allclose(fast.std(1), spread, rtol=0.15, err_msg=view)
        # Neighbouring bins far from the echo hold nothing but noise.
        quiet = int(np.argmin(clean[view][:-1] + clean[view][1:]))
        expected = np.corrcoef(slow[quiet], slow[quiet + 1])[0, 1]
        assert np.corrcoef(fast[quiet], fast[quiet + 1])[0, 1] == pytest.approx(expected, abs=0.1)


def test_an_empty_room_is_the_noise_floor_of_the_rule():
    radar = Radar()
    nothing = {view: np.zeros((bins, 200), np.float32) for view, bins in radar.views.items()}
    maps = standardise(radar, add_noise(radar, nothing, np.random.default_rng(0)))
    for view, (level, scale) in DECIBELS.items():
        assert maps[view].dtype == np.float32
        assert maps[view].mean() == pytest.approx(-level / scale, abs=0.02)


def test_the_rule_is_decibels_over_the_noise():
    radar = Radar()
    power = {
        view: np.full((bins, 1), 100 * p)
        for (view, bins), p in zip(radar.views.items(), noise_power(radar).values(), strict=True)
    }
    for view, values in standardise(radar, power).items():
        level, scale = DECIBELS[view]
        np.testing.assert_allclose(values, (20 - level) / scale, rtol=1e-5)


def test_same_seed_same_maps():
    points = np.full((50, 2, 3), [3.0, 0.2, 1.0]) + np.arange(50)[:, None, None] * 0.02
    radar = Radar(samples=16, chirps=16)
    one, two, other = (
        observe(radar, points, 50.0, np.ones(2), 16, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    for view in one:
        np.testing.assert_array_equal(one[view], two[view])
        assert not np.array_equal(one[view], other[view])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 9), rate=st.floats(1, 100))
def test_resampling_passes_through_the_samples_and_keeps_straight_motion(seed, frames, rate):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(frames, 2, 3))
    at = np.arange(frames) / rate
    np.testing.assert_allclose(resample(points, rate, at), points, atol=1e-9)
    late = resample(points, rate, np.array([at[-1] + 9]))[0]
    np.testing.assert_allclose(late, points[-1], atol=1e-9)
    if frames >= 4:  # away from the ends, which hold
        start, velocity = rng.normal(size=(2, 2, 3))
        inner = rng.uniform(at[1], at[-2], 5)
        np.testing.assert_allclose(
            resample(start + at[:, None, None] * velocity, rate, inner),
            start + inner[:, None, None] * velocity,
            atol=1e-9,
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bandwidth_hz": 0.0}, "bandwidth_hz"),
        ({"noise": -1.0}, "noise"),
        ({"azimuth_bins": 4}, "azimuth_bins"),
        ({"frame_rate": 200.0}, "chirps must fit into a frame"),
    ],
)
def test_an_impossible_radar_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Radar(**wrong)
