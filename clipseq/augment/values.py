"""Changes of the values of a map, relative to its own standard deviation.

The standard deviation is that over all cells of the map, so that the functions mean the same for a
map in decibels and for one in metres. That of a constant map is 0, so the map stays the same.
"""

import numpy as np
from jaxtyping import Float

from clipseq.augment.maps import check_generator, check_map
from clipseq.engine.options import finite_number

Map = Float[np.ndarray, "F T"]


def add_tilt(values: Map, gain: float, tilt: float = 0.0) -> Map:
    """Add a line over the bins: ``result[f] = values[f] + σ·(gain + tilt·u[f])``.

    u rises from -1 in the first bin to 1 in the last; σ is the standard deviation of the map. On a
    logarithmic map (in decibels, say), `gain` changes the loudness and `tilt` the colour.

    Raises:
        TypeError: `values` is not an array of real numbers, or another argument not a number.
        ValueError: `values` is not (F, T), or a number is not finite.
    """
    check_map(values)
    gain, tilt = finite_number("gain", gain), finite_number("tilt", tilt)
    line = np.linspace(-1.0, 1.0, len(values)) if len(values) > 1 else np.zeros(len(values))
    added = _deviation(values) * (gain + tilt * line)
    return (values + added[:, None]).astype(values.dtype)


def add_noise(values: Map, amount: float, rng: np.random.Generator) -> Map:
    """Add Gaussian noise with a standard deviation of `amount` times that of the map.

    Raises:
        TypeError: `values` is not an array of real numbers, or another argument not a number.
        ValueError: `values` is not (F, T), or a number is not finite.
    """
    check_map(values)
    check_generator(rng)
    amount = finite_number("amount", amount)
    noise = rng.standard_normal(values.shape, dtype=np.float32)
    return (values + np.float32(amount * _deviation(values)) * noise).astype(values.dtype)


def blank(values: Map) -> Map:
    """Return a map that says nothing: every cell is the mean of the given map.

    Raises:
        TypeError: `values` is not an array of real numbers.
        ValueError: `values` is not (F, T).
    """
    check_map(values)
    return np.full_like(values, values.mean(dtype=np.float64))


def _deviation(values: Map) -> float:
    return float(values.std(dtype=np.float64))
