"""A 77 GHz FMCW radar that observes moving point scatterers: range, Doppler and azimuth maps.

A frame is a burst of M chirps of N complex samples at K antennas. A scatterer s at range R with
direction cosine u along the array and radar cross-section sigma adds to the IF cube

    a_s r_s(n) d_s(m) v_s(k),    a_s = sqrt(sigma) / R^2     (power sigma / R^4, the radar equation)
    r_s(n) = exp(2 pi i n R / (N dR)),      dR = c / 2B      (beat frequency)
    d_s(m) = exp(4 pi i R(t_m) / lambda)                     (phase of the true range: Doppler)
    v_s(k) = exp(pi i k u)                                   (half-wavelength array)

each under a Hann window. The cube is never built. A windowed FFT is separable, so, with capitals
for the windowed transforms, the power summed over two of the axes is exactly

    P(f) = sum_{s,s'} a_s a_s' R_s(f) R_s'(f)* <D_s, D_s'> <V_s, V_s'>

and likewise for the other two axes. These are Gram matrices of S scatterers, which cost
O(S^2 (N + M + K)) per frame instead of O(S N M K).

Approximations: range and direction are constant within a burst, except in the phase (there is no
range migration: 6 m/s over 10 ms is 0.06 m, less than half a bin); all scatterers are isotropic and
do not hide one another; there are no multiple reflections.
"""

import functools
from collections.abc import Mapping

import attrs
import numpy as np
import torch
from jaxtyping import Float

from clipseq.data.header import Axis
from clipseq.engine.options import finite_number, whole_number

LIGHT_SPEED = 299_792_458.0
RANGE, DOPPLER, AZIMUTH = "range_time", "doppler_time", "azimuth_time"


def _positive(instance, attribute, value):
    check = whole_number if attribute.type is int else finite_number
    if not check(f"{attribute.name} of a Radar", value) > 0:
        raise ValueError(f"{attribute.name} of a Radar must be positive, got {value!r}")


def _number(instance, attribute, value):
    finite_number(f"{attribute.name} of a Radar", value)


@attrs.frozen(kw_only=True)
class Radar:
    """An FMCW radar with a horizontal array, at `height_m` above the floor, looking along +x.

    By default it has 64 range bins of 0.15 m, 64 Doppler bins of 0.195 m/s up to +-6.2 m/s, 32 bins
    of sin(bearing), and 16 frames per second.

    Attributes:
        carrier_hz: carrier frequency.
        bandwidth_hz: bandwidth that a chirp sweeps; a range bin is c / 2 bandwidth_hz wide.
        samples: number of complex samples per chirp, which is also the number of range bins.
        chirps: number of chirps per frame, which is also the number of Doppler bins.
        chirp_interval_s: time from the start of one chirp to the next.
        antennas: number of antennas in the array, half a wavelength apart.
        azimuth_bins: number of bins of sin(bearing).
        frame_rate: frames per second.
        height_m: height above the floor.
        noise: variance of the complex thermal noise of one IF sample, in units of the echo of
            1 m^2 at 1 m; 0: no noise.

    Raises:
        TypeError: a value is not a number, or a count not a whole one.
        ValueError: a value is out of its range.
    """

    carrier_hz: float = attrs.field(default=77e9, validator=_positive)
    bandwidth_hz: float = attrs.field(default=1e9, validator=_positive)
    samples: int = attrs.field(default=64, validator=_positive)
    chirps: int = attrs.field(default=64, validator=_positive)
    chirp_interval_s: float = attrs.field(default=156e-6, validator=_positive)
    antennas: int = attrs.field(default=8, validator=_positive)
    azimuth_bins: int = attrs.field(default=32, validator=_positive)
    frame_rate: float = attrs.field(default=16.0, validator=_positive)
    height_m: float = attrs.field(default=1.5, validator=_number)
    noise: float = attrs.field(default=2e-5, validator=_number)

    def __attrs_post_init__(self) -> None:
        if self.azimuth_bins < self.antennas:
            raise ValueError(
                f"azimuth_bins must be at least antennas = {self.antennas}, got {self.azimuth_bins}"
            )
        if self.noise < 0:
            raise ValueError(f"noise must be a variance, at least 0, got {self.noise!r}")
        if self.chirps * self.chirp_interval_s > 1 / self.frame_rate:
            raise ValueError(
                f"chirps must fit into a frame of 1/{self.frame_rate} s, got {self.chirps} of "
                f"{self.chirp_interval_s} s each"
            )

    @property
    def wavelength_m(self) -> float:
        """Wavelength of the carrier, lambda = c / f."""
        return LIGHT_SPEED / self.carrier_hz

    @property
    def range_resolution_m(self) -> float:
        """Width of a range bin, c / 2B."""
        return LIGHT_SPEED / (2 * self.bandwidth_hz)

    @property
    def velocity_resolution_mps(self) -> float:
        """Width of a Doppler bin, lambda / (2 M T_chirp), for a Doppler shift of 2v / lambda."""
        return self.wavelength_m / (2 * self.chirps * self.chirp_interval_s)

    @property
    def views(self) -> dict[str, int]:
        """Number of bins of each map."""
        return {RANGE: self.samples, DOPPLER: self.chirps, AZIMUTH: self.azimuth_bins}

    def axes(self) -> dict[str, Float[np.ndarray, " _"]]:
        """Return the centre of every bin of each map.

        Range is in m. Range rate is in m/s, positive when moving away. sin(bearing) is positive to
        the right of the radar's line of sight.
        """
        return {
            RANGE: np.arange(self.samples) * self.range_resolution_m,
            DOPPLER: (np.arange(self.chirps) - self.chirps // 2) * self.velocity_resolution_mps,
            AZIMUTH: 2
            * np.arange(-(self.azimuth_bins // 2), (self.azimuth_bins + 1) // 2)
            / self.azimuth_bins,
        }

    def described_axes(self) -> dict[str, Axis]:
        """Return label, unit and range of each view's bins, and the decibels of its values."""
        names = {
            RANGE: ("range", "m"),
            DOPPLER: ("velocity", "m/s"),
            AZIMUTH: ("sin(bearing)", ""),
        }
        return {
            view: Axis(
                label=names[view][0],
                unit=names[view][1],
                first=float(centres[0]),
                last=float(centres[-1]),
                values="power over noise (dB)",
                scale=DECIBELS[view][1],
                offset=DECIBELS[view][0],
            )
            for view, centres in self.axes().items()
        }

    def burst_times(self, frames: int) -> Float[np.ndarray, "T 3"]:
        """Return the times of the first chirp, the centre and the last chirp of each burst, in s.

        There is one burst per frame, at the centre of the frame.
        """
        centre = (np.arange(frames) + 0.5) / self.frame_rate
        half = (self.chirps - 1) / 2 * self.chirp_interval_s
        return centre[:, None] + np.array([-half, 0.0, half])


def resample(
    points: Float[np.ndarray, "F P 3"], rate: float, times: Float[np.ndarray, "*N"]
) -> Float[np.ndarray, "*N P 3"]:
    """Interpolate points sampled at `rate` (1/s), sample 0 at time 0, at `times` (s).

    The curves are Catmull-Rom cubics, which pass through every sample with a continuous velocity,
    so that the Doppler shift is continuous too. Times outside the recording give its first or last
    sample.
    """
    place = np.clip(times * rate, 0, len(points) - 1)
    left = np.minimum(place.astype(int), max(len(points) - 2, 0))
    f = (place - left)[..., None, None]
    p0, p1, p2, p3 = (points[np.clip(left + k, 0, len(points) - 1)] for k in (-1, 0, 1, 2))
    return p1 + f / 2 * (
        (p2 - p0) + f * ((2 * p0 - 5 * p1 + 4 * p2 - p3) + f * (3 * (p1 - p2) + p3 - p0))
    )


def _hann(length: int) -> Float[np.ndarray, " n"]:
    """Return a Hann window without its two zeros, so that all samples count; 1 for length 1."""
    return np.hanning(length + 2)[1:-1]


def _windows(radar: Radar) -> dict[str, tuple[Float[np.ndarray, " n"], int, int]]:
    """Return (window over the samples, number of bins, frequency of the first bin) per view."""
    return {
        RANGE: (_hann(radar.samples), radar.samples, 0),
        DOPPLER: (_hann(radar.chirps), radar.chirps, -(radar.chirps // 2)),
        AZIMUTH: (_hann(radar.antennas), radar.azimuth_bins, -(radar.azimuth_bins // 2)),
    }


def _turns(
    radar: Radar, points: Float[np.ndarray, "T 3 S 3"]
) -> tuple[dict[str, Float[np.ndarray, "T S _"]], Float[np.ndarray, "T S"]]:
    """Return the phase (in turns) of each scatterer per sample, chirp and antenna, and its range.

    The carrier's phase is part of the phase per chirp.
    """
    away = points - np.array([0.0, 0.0, radar.height_m])
    first, middle, last = np.sqrt(np.einsum("tisx,tisx->its", away, away))
    right = -away[:, 1, :, 1] / middle  # y points left

    def column(values):
        return values[..., None].astype(np.float32)

    # The phase is 25 000 rad at 8 m: once it is wrapped in double precision, single precision is
    # enough for the rest. Within a burst, the range is a parabola in time, so that acceleration
    # smears the Doppler line as in a real radar.
    x = np.linspace(-1, 1, radar.chirps) if radar.chirps > 1 else np.zeros(1)
    x = x.astype(np.float32)
    wavelength = radar.wavelength_m
    doppler = column(2 * middle / wavelength % 1.0) + (
        column((last - first) / wavelength) * x
        + column((first + last - 2 * middle) / wavelength) * x**2
    )
    beat = column(middle / (radar.range_resolution_m * radar.samples))
    turns = {
        RANGE: beat * np.arange(radar.samples, dtype=np.float32),
        DOPPLER: doppler,
        AZIMUTH: column(right / 2) * np.arange(radar.antennas, dtype=np.float32),
    }
    return turns, middle


def echo_power(
    radar: Radar, points: Float[np.ndarray, "T 3 S 3"], rcs: Float[np.ndarray, " S"]
) -> dict[str, Float[np.ndarray, "_ T"]]:
    """Return the noise-free power of the three maps, each summed over the cube's other two axes.

    Args:
        radar: the radar.
        points: scatterers at the three times of `radar.burst_times`, in m: x along the line of
            sight, y to the left, z up from the floor below the radar.
        rcs: their radar cross-sections in m^2.
    """
    blocks = [
        _block_power(radar, points[start : start + _FRAMES_AT_ONCE], rcs)
        for start in range(0, len(points), _FRAMES_AT_ONCE)
    ]
    return {view: np.concatenate([b[view] for b in blocks], axis=1) for view in radar.views}


_FRAMES_AT_ONCE = 40  # this number fits into the cache


def _block_power(radar: Radar, points, rcs) -> dict[str, np.ndarray]:
    turns, ranges = _turns(radar, points)
    amplitude = (np.sqrt(rcs) / ranges**2).astype(np.float32)[..., None]
    windows = _windows(radar)
    spectrum, gram = {}, {}
    for view, (window, bins, _) in windows.items():
        angle = np.float32(2 * np.pi) * turns[view]
        factor = np.empty(angle.shape, np.complex64)
        np.cos(angle, out=factor.real)
        np.sin(angle, out=factor.imag)
        factor *= (window if view != DOPPLER else window * amplitude).astype(np.float32)
        # torch's FFT is ten times as fast as numpy's on many short rows.
        spectrum[view] = torch.fft.fft(torch.from_numpy(factor), bins).numpy()
        # By Parseval, the inner product of two transforms is that of the factors, times `bins`.
        gram[view] = np.float32(bins) * (factor @ factor.conj().transpose(0, 2, 1))
    power = {}
    for view, lines in spectrum.items():
        one, two = (gram[other] for other in gram if other != view)
        weighted = (one * two).conj() @ lines  # (T, S, F)
        summed = (lines.real * weighted.real + lines.imag * weighted.imag).sum(axis=1).T
        power[view] = np.roll(summed, -windows[view][2], axis=0)
    return power


def noise_power(radar: Radar) -> dict[str, float]:
    """Return the mean power that the thermal noise adds to a bin of each map."""
    return {view: statistics[0] for view, statistics in _noise_statistics(radar).items()}


@functools.lru_cache(maxsize=8)
def _noise_statistics(radar: Radar) -> dict[str, tuple[float, float, float, np.ndarray]]:
    """Return (mean, variance, cross factor, root of the bins' correlation) of each map's noise.

    By Parseval over the two summed axes, a bin's power is sum_j q_j |s_j + n_j|^2 with independent
    complex Gaussian n_j of variance g = noise * sum(w^2) and weights q_j = F_1 F_2 w_1^2 w_2^2: a
    weighted noncentral chi-square. Its mean is S + g sum(q). Its variance is g^2 sum(q^2) +
    2 g sum(q^2 |s|^2), where the last sum is S sum(q^2)/sum(q) for echoes of constant modulus. The
    window correlates the bins by |rho|^2, where rho is the transform of w^2.
    """
    windows = {view: (w**2, bins) for view, (w, bins, _) in _windows(radar).items()}
    statistics = {}
    for view, (squared, bins) in windows.items():
        cell = radar.noise * float(squared.sum())
        total = squares = 1.0
        for other, (w2, n) in windows.items():
            if other != view:
                total *= n * float(w2.sum())
                squares *= n**2 * float((w2**2).sum())
        rho = np.abs(np.fft.fft(squared, bins)) / squared.sum()
        # |rho|^2 depends only on the circular distance of two bins, so the FFT diagonalises it, and
        # the root of its spectrum turns white noise into noise with this correlation.
        root = np.sqrt(np.maximum(np.fft.fft(rho**2).real, 0.0))
        statistics[view] = (
            cell * total,
            cell**2 * squares,
            2 * cell * squares / total,
            root[: bins // 2 + 1, None],
        )
    return statistics


def add_noise(
    radar: Radar, power: Mapping[str, Float[np.ndarray, "_ T"]], rng: np.random.Generator
) -> dict[str, Float[np.ndarray, "_ T"]]:
    """Return `power` as measured under thermal noise.

    A bin sums hundreds of cells, so its noncentral chi-square (see `_noise_statistics`) is drawn as
    a Gaussian of the same mean and variance. The windows correlate the noise of neighbouring bins.
    The smallest value is a hundredth of the mean noise.
    """
    if radar.noise == 0:
        return dict(power)
    noisy = {}
    for view, (mean, variance, cross, root) in _noise_statistics(radar).items():
        clean = power[view]
        white = np.fft.rfft(rng.standard_normal(clean.shape, dtype=np.float32), axis=0)
        draw = np.fft.irfft(root * white, len(clean), axis=0)
        measured = clean + mean + draw * np.sqrt(variance + cross * clean)
        noisy[view] = np.maximum(measured, mean / 100)
    return noisy


DECIBELS: dict[str, tuple[float, float]] = {
    RANGE: (3.0, 9.0),
    DOPPLER: (3.0, 9.0),
    AZIMUTH: (10.0, 12.0),
}
"""The level and scale of each view in `standardise`, in dB."""


def standardise(
    radar: Radar, power: Mapping[str, Float[np.ndarray, "_ T"]]
) -> dict[str, Float[np.ndarray, "_ T"]]:
    """Return (10 log10(P / mean noise power of the bin) - level) / scale, in float32.

    The rule is the same for all clips. 0 dB is the noise floor of the radar (or of `Radar()` for a
    radar without noise); values below -20 dB are raised to -20 dB. Level and scale are the
    constants in `DECIBELS`, with which the maps of one person at 1-8 m have about zero mean and
    unit scale.
    """
    floor = noise_power(radar if radar.noise else attrs.evolve(radar, noise=Radar().noise))
    maps = {}
    for view, values in power.items():
        level, scale = DECIBELS[view]
        decibels = 10 * np.log10(np.maximum(values / floor[view], 1e-2))
        maps[view] = ((decibels - level) / scale).astype(np.float32)
    return maps


def observe(
    radar: Radar,
    points: Float[np.ndarray, "F S 3"],
    rate: float,
    rcs: Float[np.ndarray, " S"],
    frames: int,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "_ T"]]:
    """Return the standardised maps, with `frames` frames, of scatterers that move along `points`.

    Args:
        radar: the radar.
        points: positions of the scatterers in m.
        rate: samples of `points` per second.
        rcs: their radar cross-sections in m^2.
        frames: number of frames.
        rng: random generator for the noise.
    """
    at_bursts = resample(points, rate, radar.burst_times(frames))
    return standardise(radar, add_noise(radar, echo_power(radar, at_bursts, rcs), rng))
