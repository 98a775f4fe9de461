"""``drop_dtw``: both sequences aligned in order, without the steps that lack a counterpart."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity, hookimpl


class DropDTWSimilarity(Similarity):
    r"""The best alignment in order of the steps that are worth aligning.

    .. math::
        S = 1 - \frac{1}{t + l} \min_{X, Y} \Big( \mathrm{DTW}(X, Y)
            + d\,(t - |X| + l - |Y|) \Big)

    over all choices of steps X from x and Y from y (both empty or neither), where DTW aligns the
    kept steps with costs ``1 - cos``, and d is the cost of a dropped step. This is Drop-DTW
    (Dvornik et al., arXiv:2108.11996) with drops on both sides and the hard minimum. We differ in
    the step pattern, which is symmetric2 as in ``temporal`` (a diagonal step counts its cost
    twice): every step of x and y, kept or dropped, then counts once, and S is the mean over t + l
    steps of the cosine of their match, or of 1 - d. So S is never below 1 - d, and equal sequences
    score 1. With a smooth minimum, equal sequences would score less, because it also counts
    alignments that drop matching steps. Another difference is that d is a constant; the paper takes
    a percentile of the pair's costs, or learns it.

    It is computed by dynamic programming, one anti-diagonal at a time over all pairs of a tile. The
    gradient is the best alignment, or a mean of them if several are best. Cost: O(B·C·T·L·D) for
    the cosines, then about 10 operations per cell, forward and backward.

    Args:
        drop_cost: d, in units of cost, at least 0. Steps are dropped if the cosine of their match,
            in order, would be below 1 - d. At 4 or more, no step is dropped, and S is normalised
            DTW.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: drop_cost is negative or not finite.
    """

    default_weight = 0.2
    # Autograd keeps about ten numbers per cell.
    tile_elements = 2**18

    def __init__(self, *, drop_cost: float = 0.7, embed_dim: int | None = None) -> None:
        super().__init__(embed_dim=embed_dim)
        if not 0 <= drop_cost < math.inf:
            raise ValueError(f"drop_cost must be finite and at least 0, got {drop_cost!r}")
        self.drop_cost = float(drop_cost)

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        cosines = torch.einsum("btd,cld->tlbc", x.values, y.values)
        t, length = x.lengths[:, None], y.lengths
        return _best(cosines, t, length, 1 - self.drop_cost) / (t + length)

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        """Count the visits of the best alignment to each cell, the first and diagonal steps twice.

        Dropped steps get zero weights, so a pair's weights sum to the number of kept steps.
        """
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors from inference mode cannot be differentiated; clones of them can.
            u, v = x.values.detach().clone(), y.values.detach().clone()
            cosines = torch.einsum("ntd,nld->tln", u, v).requires_grad_()
            best = _best(cosines, x.lengths.clone(), y.lengths.clone(), 1 - self.drop_cost)
            (weights,) = torch.autograd.grad(best.sum(), cosines)
        return weights.permute(2, 0, 1)


def _best(
    cosines: Float[Tensor, "T L *n"], x_lengths: Tensor, y_lengths: Tensor, dropped: float
) -> Float[Tensor, "*n"]:
    """Return the largest sum over t + l steps, each counting its match's cosine, or `dropped`.

    There are four sums for the first i steps of x and the first j of y: `both`, where x_i and y_j
    match each other; `onto_y`, where y_j is the last kept step of y, so that the next step of x may
    match it too; `onto_x`, likewise for x_i; and `total`, without such a restriction. The sums of
    one anti-diagonal i + j are stored together, one row per i, with all pairs side by side in a
    row. `total` and `onto_y` also have a row for i = 0, because the next row needs it.
    """
    diagonals = _diagonals(cosines)
    onto_x = diagonals[0]
    border = torch.full_like(onto_x[:1], -torch.inf)
    onto_y = before = torch.cat((border, onto_x))
    total = torch.cat((torch.zeros_like(border), onto_x))
    totals = [total]
    for k, cells in enumerate(diagonals[1:], start=1):
        joined = onto_y[:-1]
        both = torch.maximum(torch.maximum(joined, onto_x) + cells, before[:-1] + 2 * cells)
        onto_y = torch.cat((border, torch.maximum(both, joined + dropped)))
        onto_x = torch.maximum(both, onto_x + dropped)
        one_more = torch.maximum(total[:-1], total[1:]) + dropped
        all_dropped = torch.full_like(border, k * dropped)
        before, total = total, torch.cat((all_dropped, torch.maximum(both, one_more)))
        totals.append(total)
    table = torch.stack(totals)  # (T + L + 1, T + 1, *n)
    place = (x_lengths + y_lengths) * table.shape[1] + x_lengths
    return table.flatten(0, 1).gather(0, place.expand(table.shape[2:])[None])[0]


def _diagonals(cosines: Float[Tensor, "T L *n"]) -> tuple[Float[Tensor, "T *n"], ...]:
    """Return the cells (i, k - i), i = 1 .. T, for each k = 0 .. T + L; -inf outside the table."""
    steps, others = cosines.shape[:2]
    count = steps + others + 1
    lanes = (0, 0) * (cosines.ndim - 2)
    # The rows are padded to one cell more than there are anti-diagonals, then read as rows of
    # exactly that many, so that each row starts one place later than the row above.
    padded = torch.nn.functional.pad(cosines, (*lanes, 2, steps), value=-torch.inf)
    skewed = padded.flatten(0, 1)[: steps * count]
    return skewed.unflatten(0, (steps, count)).unbind(1)


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"drop_dtw": DropDTWSimilarity}
