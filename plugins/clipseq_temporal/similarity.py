"""Soft-DTW, normalised so that lengths do not matter."""

import math
from typing import SupportsFloat

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity
from clipseq_temporal.recursion import (
    GROWTH,
    Sweep,
    backward,
    cells_within,
    confine,
    edges,
    forward,
    reach_of,
    strips,
    ways_at_once,
)
from clipseq_temporal.scores import temporal_scores


class TemporalSimilarity(Similarity):
    r"""Both sequences in order: one minus a normalised soft-DTW over ``c = 1 - cos``.

    .. math::
        S = 1 - \frac{\mathrm{softDTW}_\gamma(c) + \gamma \log N(t, l)}{t + l}, \qquad
        \mathrm{softDTW}_\gamma(c) = -\gamma \log \sum_{\text{paths}} e^{-\text{cost}/\gamma}

    Soft-DTW is that of Cuturi and Blondel (arXiv:1703.01541). We differ in three ways. The step
    pattern is symmetric2 (Sakoe and Chiba 1978): a diagonal step and the first cell count their
    cost twice, so that every path weighs t + l. N is the number of paths: dividing the sum by it
    makes it a mean, where plain soft-DTW gives long sequences γ·log N for nothing. And dividing
    by t + l makes it cosine units: a constant cost c gives exactly 1 - c at any lengths, and
    γ → 0 gives 1 minus normalised DTW.

    Computed anti-diagonal by anti-diagonal over all pairs of a tile at once, each pair read at
    its own lengths; the gradient is the expected alignment, computed anew in backward.

    Cost: O(B·C·T·L·D) for the products, one more than the cosines and their gradients take.
    Without a band the recursion runs in ratios of neighbouring cells: one transcendental and five
    passes a cell; in backward one and thirteen. Where a ratio overflows (steps that contrast for
    long; float32 has room for about 125·γ·log 2 in summed difference of cosines), and for γ below
    0.024 (0.003 in float64), it runs in log space: four transcendentals and ten passes. A band
    does so too, and only over the cells that it has in any pair of a tile, which are few more than
    its own where lengths are alike; products are made of little more than these.

    Args:
        gamma: smoothing, in units of cost, positive. Small: the best path alone counts, and
            gradients reach few steps. Beyond 10, float32 tells scores to about γ·10⁻⁷ only.
        band: None, or the most that the relative positions of two steps may differ, in [0, 1]:
            a Sakoe-Chiba band, slanted where lengths differ, and at least so wide that the
            corner can be reached.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: gamma not positive, or one that float32 does not hold; band outside [0, 1].
    """

    default_weight = 0.2

    def __init__(
        self, *, gamma: float = 0.1, band: float | None = None, embed_dim: int | None = None
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        if not isinstance(gamma, SupportsFloat) or not 1e-30 < gamma < 1e30:
            raise ValueError(f"gamma must be positive, 1e-30 to 1e30, got {gamma!r}")
        if band is not None and not (isinstance(band, SupportsFloat) and 0 <= band <= 1):
            raise ValueError(f"band must be None or lie in [0, 1], got {band!r}")
        self.gamma = float(gamma)
        self.band = None if band is None else float(band)

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        band = None if self.band == 1 else self.band  # which has every cell, at more cost
        return temporal_scores(x.values, y.values, x.lengths, y.lengths, self.gamma, band)

    def score_all(self, x: Sequences, y: Sequences, steps: tuple[int, int]) -> Float[Tensor, "B C"]:
        """`score` of everything at once: the operator cuts its own tiles."""
        return self.score(x, y)

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        """The expected alignment: how often a path meets each cell, in expectation over all paths.

        A diagonal step and the first cell count twice, so the weights of a pair sum to t + l. It
        is the gradient of ``-(t + l)·S`` to the costs.
        """
        t, length = x.lengths, y.lengths
        # One strip, with or without a band: n pairs are few.
        lanes = strips(t, length, None)
        with torch.no_grad():
            rates = torch.einsum("ntd,nld->tln", x.values, y.values)
            rates = rates[: int(t.max()), : int(length.max())] / (self.gamma * math.log(2)) - GROWTH
            reach = None
            if self.band is not None:
                low, high = edges(lanes[0], t, length, self.band)
                confine(rates, low, high)
                reach = reach_of(low, high)
            field = torch.nn.functional.pad(rates, (0, 0, 1, 0, 1, 0))
            room = rates.new_empty(ways_at_once(lanes[0].shape, reach) * len(t))
            # Less the score, logarithms stay small and their differences precise.
            sweep = Sweep(field.clone(), reach, room)
            field[1:, 1:] -= forward(lanes, lambda _: sweep, length) / (t + length)
            shares = rates.new_empty(3 * cells_within(lanes[0].shape, reach) * len(t))
            kept = Sweep(field, reach, room, shares)
            forward(lanes, lambda _: kept, length)
            ones = torch.ones_like(rates[0, 0])
            ((_, alignment),) = backward(ones, lanes, lambda _: kept, length)
        whole = alignment.new_zeros(x.values.shape[1], y.values.shape[1], len(t))
        whole[: alignment.shape[0], : alignment.shape[1]] = alignment
        return whole.permute(2, 0, 1)
