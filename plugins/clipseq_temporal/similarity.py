"""Soft-DTW, normalised so that scores do not depend on lengths."""

from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity
from clipseq.engine import single_number
from clipseq_temporal.matched import expected_alignment, matched_scores
from clipseq_temporal.scores import temporal_scores


class TemporalSimilarity(Similarity):
    r"""The agreement of two sequences in order: one minus a normalised soft-DTW of ``1 - cos``.

    .. math::
        c = 1 - \cos(x_t, y_l), \qquad
        S = 1 - \frac{\mathrm{softDTW}_\gamma(c) + \gamma \log N(t, l)}{t + l}, \qquad
        \mathrm{softDTW}_\gamma(c) = -\gamma \log \sum_{\text{paths}} e^{-\text{cost}/\gamma}

    This is soft-DTW (Cuturi and Blondel, arXiv:1703.01541) with three differences. The step pattern
    is symmetric2 (Sakoe and Chiba 1978): a diagonal step and the first cell count their cost twice,
    so every path has the total weight t + l. N is the number of paths: dividing the sum by it gives
    a mean, whereas plain soft-DTW favours long sequences by γ·log N. Dividing by t + l gives cosine
    units: a constant cost c scores exactly 1 - c at any lengths, and γ → 0 gives 1 minus normalised
    DTW.

    All pairs of a tile are computed at once, anti-diagonal by anti-diagonal, each pair at its own
    lengths. The gradient is the expected alignment, which is computed in backward.

    Cost: O(B·C·T·L·D) for the matrix products, one more than the three for the cosines and their
    gradients. Without a band, the recursion runs in ratios of neighbouring cells: one
    transcendental and five passes per cell, and in backward one and thirteen. Where a ratio
    overflows (long stretches of contrasting steps; float32 has room for about 125·γ·log 2 in summed
    difference of cosines), and for γ below 0.024 (0.003 in float64), it runs in log space: four
    transcendentals and ten passes. With a band it always runs in log space, but only over cells in
    the band of some pair of a tile, which are hardly more than those of one band if lengths are
    similar; products cover few other cells.

    Args:
        gamma: smoothing, in units of cost, positive. If it is small, only the best path counts, and
            gradients reach few steps. From about 0.4 on, a sequence may score higher with a
            constant than with itself: the mean over all paths includes the poor ones. Above 10,
            float32 resolves scores only to about γ·10⁻⁷.
        band: None, or the largest difference between the relative positions of two steps, in
            [0, 1]: a Sakoe-Chiba band, slanted where lengths differ, and always wide enough for the
            corner to be reached.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: gamma is not positive or outside the range of float32, or band is outside
            [0, 1].
    """

    default_weight = 1.0
    operators = (temporal_scores,)

    def __init__(
        self, *, gamma: float = 0.1, band: float | None = None, embed_dim: int | None = None
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        smoothing = single_number(gamma)
        if smoothing is None or not 1e-30 < smoothing < 1e30:
            raise ValueError(f"gamma must be positive, 1e-30 to 1e30, got {gamma!r}")
        width = None if band is None else single_number(band)
        if band is not None and (width is None or not 0 <= width <= 1):
            raise ValueError(f"band must be None or lie in [0, 1], got {band!r}")
        self.gamma = smoothing
        self.band = width

    def degenerate(self, x_steps: int, y_steps: int) -> tuple[str, ...]:
        """Name a band that excludes no cell."""
        if self.band != 1:
            return ()
        return ("has a band of 1, which excludes nothing; set a narrower band, or band=None",)

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        return temporal_scores(
            x.values, y.values, x.lengths, y.lengths, self.gamma, self._useful_band
        )

    def score_all(self, x: Sequences, y: Sequences, steps: tuple[int, int]) -> Float[Tensor, "B C"]:
        """Score everything at once, since the operator cuts its own tiles."""
        return self.score(x, y)

    def score_pairs(self, x: Sequences, y: Sequences) -> Float[Tensor, "n"]:
        return matched_scores(
            x.values, y.values, x.lengths, y.lengths, self.gamma, self._useful_band
        )

    @property
    def _useful_band(self) -> float | None:
        return None if self.band == 1 else self.band  # a band of 1 has every cell, at a higher cost

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        """Return the expected alignment: how often a path meets each cell, over all paths.

        A diagonal step and the first cell count twice, so the weights of a pair sum to t + l. They
        are the gradient of ``-(t + l)·S`` to the costs.
        """
        return expected_alignment(x.values, y.values, x.lengths, y.lengths, self.gamma, self.band)
