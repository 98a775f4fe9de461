"""Similarities that each break one promise, with the check that must notice.

Each differs from a clean reference (`Pooled`, `MaxSim`, `SoftMatch` or `Dtw`) in the one thing that
its docstring names.
"""

import math
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from clipseq import Alignment, Sequences, Similarity, unit

WRONG: list[tuple[Callable[[], Similarity], str]] = []
"""Functions that create a wrong similarity, each with the check that should catch it."""


def caught_by(check: str) -> Callable[[type[Similarity]], type[Similarity]]:
    def note(cls: type[Similarity]) -> type[Similarity]:
        WRONG.append((cls, check))
        return cls

    return note


def real_pairs(x: Sequences, y: Sequences) -> Tensor:
    return x.mask[:, None, :, None] & y.mask[None, :, None, :]


def cosines(x: Sequences, y: Sequences) -> Tensor:
    """Return the cosines (b, c, T, L) of every step of x with every step of y."""
    return torch.einsum("btd,cld->bctl", x.values, y.values)


def matched(x: Sequences, y: Sequences) -> tuple[Tensor, Tensor]:
    real = x.mask[:, :, None] & y.mask[:, None, :]
    return torch.bmm(x.values, y.values.mT), real


class Pooled(Similarity):
    """Clean: the cosine of mean steps, and an option."""

    def __init__(self, *, sharpness: float = 1.0, embed_dim: int | None = None) -> None:
        super().__init__(embed_dim=embed_dim)
        self.sharpness = sharpness

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        steps = Sequences(unit(x.values), x.mask)
        return unit(steps.values.sum(1) / steps.lengths[:, None]), steps

    def score(self, x: tuple[Tensor, Sequences], y: tuple[Tensor, Sequences]) -> Tensor:
        return x[0] @ y[0].T

    def align(self, x: tuple[Tensor, Sequences], y: tuple[Tensor, Sequences]) -> Tensor:
        products, real = matched(x[1], y[1])
        return products.clamp(min=0).masked_fill(~real, 0.0)


class MaxSim(Similarity):
    """Clean: the mean best cosine, both ways."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        masked = cosines(x, y).masked_fill(~real_pairs(x, y), -torch.inf)
        rows = masked.amax(3).masked_fill(~x.mask[:, None], 0.0).sum(2) / x.lengths[:, None]
        columns = masked.amax(2).masked_fill(~y.mask, 0.0).sum(2) / y.lengths
        return (rows + columns) / 2

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        products, real = matched(x, y)
        return products.clamp(min=0).masked_fill(~real, 0.0)


class SoftMatch(Similarity):
    """Clean: the mean cosine under a softmax over y, with a learnt temperature."""

    def __init__(self, *, temperature: float = 0.2, embed_dim: int | None = None) -> None:
        super().__init__(embed_dim=embed_dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        products = cosines(x, y)
        logits = products / self.log_temperature.exp().to(products.dtype)
        shares = logits.masked_fill(~y.mask[None, :, None, :], -torch.inf).softmax(3)
        means = (shares * products).sum(3).masked_fill(~x.mask[:, None], 0.0)
        return means.sum(2) / x.lengths[:, None]

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        products, real = matched(x, y)
        logits = products / self.log_temperature.exp().to(products.dtype)
        shares = logits.masked_fill(~y.mask[:, None], -torch.inf).softmax(2)
        return shares.masked_fill(~real, 0.0)


class Dtw(Similarity):
    """Clean: a soft minimum over monotonic paths, as a smoothed mean of path costs."""

    gamma = 0.3

    def ends(self, x: Sequences, y: Sequences) -> tuple[Tensor, Tensor]:
        return x.lengths - 1, y.lengths - 1

    def _total(self, cost: Tensor, t: Tensor, length: Tensor) -> Tensor:
        steps, others = cost.shape[2:]
        grid: dict[tuple[int, int], Tensor] = {}
        for i in range(steps):
            for j in range(others):
                ways = [
                    grid[i - a, j - b] - weight * cost[:, :, i, j] / self.gamma
                    for a, b, weight in ((1, 0, 1), (0, 1, 1), (1, 1, 2))
                    if i >= a and j >= b
                ]
                start = -2 * cost[:, :, i, j] / self.gamma
                grid[i, j] = torch.stack(ways).logsumexp(0) if ways else start
        rows = torch.stack([torch.stack([grid[i, j] for j in range(others)]) for i in range(steps)])
        b, c = cost.shape[:2]
        i, j = torch.arange(b)[:, None], torch.arange(c)
        return rows.permute(2, 3, 0, 1)[i, j, t[:, None], length]

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        cost = 1 - cosines(x, y)
        t, length = self.ends(x, y)
        total = self._total(cost, t, length) - self._total(torch.zeros_like(cost), t, length)
        return 1 + self.gamma * total / (x.lengths[:, None] + y.lengths)

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        products, real = matched(x, y)
        return products.clamp(min=0).masked_fill(~real, 0.0)


CLEAN = (Pooled, MaxSim, SoftMatch, Dtw)


# Similarities that do not run


@caught_by("forward_and_backward")
class ForgetsSuper(Pooled):
    """nn.Module is never set up."""

    def __init__(self) -> None:
        self.sharpness = 1.0


@caught_by("forward_and_backward")
class CannotBeMade(Pooled):
    """An option without a default that is not given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


@caught_by("forward_and_backward")
class Transposed(Pooled):
    """Scores (c, b)."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y).T


@caught_by("forward_and_backward")
class ScoresInAList(Pooled):
    """Numbers, not a tensor."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y).tolist()


@caught_by("forward_and_backward")
class ScoresInDouble(Pooled):
    """float64, whatever it was given."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y).double()


@caught_by("forward_and_backward")
class ScoresNaN(Pooled):
    """0/0 everywhere."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        scores = super().score(x, y)
        return scores / (scores - scores) * 0


@caught_by("forward_and_backward")
class ScoresWithoutGraph(Pooled):
    """Neither side gets a gradient."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y).detach()


@caught_by("forward_and_backward")
class NaNGradients(Pooled):
    """A root whose gradient at 0 is infinite, times 0."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        scores = super().score(x, y)
        return scores + (0 * scores).sqrt()


# Padding


@caught_by("ragged_batches")
class MultipliesMaskBeforeMax(MaxSim):
    """Padding scores 0, which beats a negative cosine."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        masked = cosines(x, y) * real_pairs(x, y)
        rows = masked.amax(3).sum(2) / x.lengths[:, None]
        return (rows + masked.amax(2).sum(2) / y.lengths) / 2


@caught_by("ragged_batches")
class DividesByPaddedLength(SoftMatch):
    """The mean counts padded steps."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        return super().score(x, y) * x.lengths[:, None] / x.mask.shape[1]


@caught_by("ragged_batches")
class SoftmaxOverPadding(SoftMatch):
    """Padded steps of y take part in the softmax, at cosine 0."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        products = cosines(x, y)
        shares = (products / self.log_temperature.exp().to(products.dtype)).softmax(3)
        return (shares * products).sum((2, 3)) / x.lengths[:, None]


@caught_by("ragged_batches")
class ReadsPathAtTheEndOfTheBatch(Dtw):
    """Reads the recursion at T and L, not at each pair's own t and l."""

    def ends(self, x: Sequences, y: Sequences) -> tuple[Tensor, Tensor]:
        last_x, last_y = x.mask.shape[1] - 1, y.mask.shape[1] - 1
        return torch.full_like(x.lengths, last_x), torch.full_like(y.lengths, last_y)


@caught_by("ragged_batches")
class WindowOneTooFar(MaxSim):
    """The last window of two steps reaches over the end of the sequence, into padding."""

    def prepare_x(self, x: Sequences) -> Sequences:
        values = nn.functional.pad(unit(x.values), (0, 0, 0, 1))
        counted = nn.functional.pad(x.mask, (0, 1))
        # Divides by two even if only one of the two steps is real, and does not normalise again.
        windows = (values[:, :-1] + values[:, 1:]) / 2
        reaches = counted[:, 1:] | (torch.arange(x.mask.shape[1]) == x.mask.shape[1] - 1)
        return Sequences(unit(windows) * (0.5 + 0.5 * reaches[..., None]), x.mask)


@caught_by("ragged_batches")
class BiasOnPadding(MaxSim):
    """A learnt bias makes padded steps non-zero, and the mean takes them in."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        values = unit(x.values) + self.bias.to(x.values.dtype)
        return unit(values.sum(1)), Sequences(unit(x.values), x.mask)

    def score(self, x: tuple[Tensor, Sequences], y: tuple[Tensor, Sequences]) -> Tensor:
        return x[0] @ y[0].T

    def align(self, x: tuple[Tensor, Sequences], y: tuple[Tensor, Sequences]) -> Tensor:
        return super().align(x[1], y[1])


@caught_by("ragged_batches")
class LastStepOfTheBatch(Pooled):
    """Takes step T for the last one."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        return unit(x.values[:, -1]), Sequences(unit(x.values), x.mask)


@caught_by("ragged_batches")
class PositionsRelativeToTheBatch(Pooled):
    """Weighs a step by its place in the padded length."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        steps = unit(x.values)
        place = torch.linspace(1, 2, x.mask.shape[1], dtype=steps.dtype)[:, None]
        return unit((steps * place).sum(1)), Sequences(steps, x.mask)


@caught_by("compile")
class NegativePaddingEverywhere(Pooled):
    """Zero padding beats negative features in a maximum, but only where every row has it."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        longest = x.mask.any(0).sum() == x.mask.shape[1]
        values = x.values.masked_fill(~x.mask[..., None] & longest, -torch.inf)
        return unit(values.amax(1)), Sequences(unit(x.values), x.mask)


# Other items of the batch


@caught_by("independence")
class CentredOnTheBatch(Pooled):
    """Subtracts the mean of the batch first."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        pooled, steps = super().prepare_x(x)
        return unit(pooled - 0.3 * pooled.mean(0)), steps


@caught_by("independence")
class SoftmaxOverTheBatch(Pooled):
    """A pair's score depends on how the other columns did."""

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        products = self.score(x, y)
        return products * (1 - 0.1 * products.softmax(1) + 0.1 / products.shape[1])


@caught_by("independence")
class PoolsGradientsAcrossRows(Pooled):
    """The scores are right, and a part of each gradient goes to the next row."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        pooled, steps = super().prepare_x(x)
        return pooled + 0.1 * (pooled.roll(1, 0) - pooled.roll(1, 0).detach()), steps


@caught_by("permutation")
class BiasByPlace(Pooled):
    """The first row is better than the others."""

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        scores = self.score(x, y)
        return scores * (1 - 0.1 * (torch.arange(len(scores))[:, None] > 0))


@caught_by("duplicates")
class FirstOfEqualsWins(Pooled):
    """Only the first of equal columns keeps its score."""

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        scores = self.score(x, y)
        again = torch.stack([(y[0][:j] == y[0][j]).all(1).any() for j in range(len(y[0]))])
        return torch.where(again, scores - 0.1, scores)


@caught_by("one_row_batches")
class SqueezesTheBatch(Pooled):
    """A batch of one loses its axis, and broadcasts against features."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return torch.einsum("...d,cd->...c", x[0].squeeze(), y[0])


@caught_by("rectangles")
class SquareOnly(MaxSim):
    """Mixes up T and L."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        return super().score(x, y) * x.mask.shape[1] / y.mask.shape[1]


@caught_by("single_steps")
class NeedsTwoSteps(Pooled):
    """The standard deviation over one step is NaN."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        pooled, steps = super().prepare_x(x)
        return unit(pooled + 0 * steps.values.std(1)), steps


@caught_by("long_against_short")
class LosesCountOfLongOnes(Pooled):
    """From 50 padded steps on, shorter sequences count for half."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        pooled, steps = super().prepare_x(x)
        short = (x.lengths < x.mask.shape[1]) & (x.mask.shape[1] > 50)
        return pooled * (1 - 0.5 * short[:, None]), steps


# Tiles and memory


@caught_by("two_processes")
class RemembersItsLengths(Pooled):
    """The lengths of y are those that prepare_y last saw, and all pairs are scored at once."""

    def prepare_y(self, y: Sequences) -> tuple[Tensor, Sequences]:
        self._lengths = y.lengths.tolist()
        return self.prepare_x(y)

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        lengths = torch.tensor(self._lengths, dtype=x[0].dtype)
        return self.score(x, y) * (1 - lengths / 100)


@caught_by("tile_size")
class NormalisesTheTile(Pooled):
    """`score` takes what it sees for the whole batch."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        scores = super().score(x, y)
        return scores * (0.9 + 0.1 / len(y[0]))


@caught_by("tile_size")
class AsymmetricTileEdges(MaxSim):
    """Tiles of its own; where the last column of tiles is narrower, it is scored too low."""

    def score_all(self, x: Sequences, y: Sequences, steps: tuple[int, int]) -> Tensor:
        width = max(1, self.tile_elements // (len(x.mask) * steps[0] * steps[1]))
        bands = []
        for j in range(0, len(y.mask), width):
            band = self.score(x, Sequences(y.values[j : j + width], y.mask[j : j + width]))
            narrow = 1 <= band.shape[1] < width and j > 0
            bands.append(band * (0.99 if narrow else 1))
        return torch.cat(bands, 1)


@caught_by("tile_size")
class OtherWithoutGradients(Pooled):
    """A faster path for evaluation gives other numbers."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        scores = super().score(x, y)
        return scores if torch.is_grad_enabled() else scores * 0.999


@caught_by("large_batches")
class LosesItsLastBlock(Pooled):
    """Blocks of a fixed number of rows; the last one is left at zero."""

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        scores = self.score(x, y)
        whole = len(scores) // 32 * 32
        return (
            scores if whole in (0, len(scores)) else torch.cat((scores[:whole], 0 * scores[whole:]))
        )


@caught_by("bounded_memory")
class AllPairsAtOnce(MaxSim):
    """No tiles."""

    def score_all(self, x: Sequences, y: Sequences, steps: tuple[int, int]) -> Tensor:
        return self.score(x, y)


@caught_by("bounded_memory")
class KeepsEveryTile(MaxSim):
    """Tiles, but none is recomputed: backward holds them all."""

    def score_all(self, x: Sequences, y: Sequences, steps: tuple[int, int]) -> Tensor:
        rows = [
            self.score(Sequences(x.values[i : i + 1], x.mask[i : i + 1]), y)
            for i in range(len(x.mask))
        ]
        return torch.cat(rows)


@caught_by("bounded_memory")
class KeepsNumbersOfEachPair(Pooled):
    """Tiles are not needed, but backward keeps 16 numbers of every pair beside its score."""

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        scores = self.score(x, y)
        return sum((k * scores).sin() / k for k in range(1, 17)) / 16


# Matched pairs


@caught_by("pairs")
class PairsOneWay(MaxSim):
    """Matched pairs are scored in one direction only."""

    def score_pairs(self, x: Sequences, y: Sequences) -> Tensor:
        products, real = matched(x, y)
        best = products.masked_fill(~real, -torch.inf).amax(2).masked_fill(~x.mask, 0.0)
        return best.sum(1) / x.lengths


@caught_by("pairs")
class PairsWithoutGradient(Pooled):
    """The scores of matched pairs are right, and half of their gradient is missing."""

    def score_pairs(self, x: tuple, y: tuple) -> Tensor:
        return (x[0] * y[0].detach()).sum(1)


@caught_by("pairs")
class PairsFromTheDiagonal(Pooled):
    """All pairs of a tile are scored, for their diagonal."""

    def score_pairs(self, x: tuple, y: tuple) -> Tensor:
        return self.score(x, y).diagonal()


@caught_by("pairs")
class PairsFromAllCosines(MaxSim):
    """The cosines of all pairs of a tile are computed, for those of matched pairs."""

    def score_pairs(self, x: Sequences, y: Sequences) -> Tensor:
        products = cosines(x, y).diagonal().permute(2, 0, 1)
        real = x.mask[:, :, None] & y.mask[:, None, :]
        masked = products.masked_fill(~real, -torch.inf)
        rows = masked.amax(2).masked_fill(~x.mask, 0.0).sum(1) / x.lengths
        return (rows + masked.amax(1).masked_fill(~y.mask, 0.0).sum(1) / y.lengths) / 2


# The range and its meaning


@caught_by("range")
class SumNotMean(MaxSim):
    """Adds where it should average; `forward` would clamp it."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        return super().score(x, y) * x.lengths[:, None]


@caught_by("range")
class DividesByAnything(Pooled):
    """Divides by a sum of cosines, which may be zero."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        scores = super().score(x, y)
        return scores * (scores / scores)


@caught_by("identical_sequences")
class CountsOneStepTooMany(MaxSim):
    """The denominator is t + 1."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        t = x.lengths[:, None]
        return super().score(x, y) * t / (t + 1)


@caught_by("identical_sequences")
class NotNormalisedByPaths(Dtw):
    """Plain soft-DTW: longer sequences win for being longer."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        total = self._total(1 - cosines(x, y), *self.ends(x, y))
        return (1 + self.gamma * total / (x.lengths[:, None] + y.lengths)).clamp(max=2)


@caught_by("opposite_sequences")
class LosesTheSign(Pooled):
    """A squared cosine."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y).square()


@caught_by("zero_vectors")
class NaNGradientAtZero(Pooled):
    """The norm's gradient at a zero vector, hidden in the branch that is not taken."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        norm = x.values.square().sum(-1, keepdim=True).sqrt()
        steps = torch.where(norm > 0, x.values / norm, 0.0)
        return unit(steps.sum(1)), Sequences(steps.nan_to_num(), x.mask)


@caught_by("zero_vectors")
class HugeGradientAtZero(MaxSim):
    """A gradient of 1/eps, like that of torch.nn.functional.normalize."""

    def prepare_x(self, x: Sequences) -> Sequences:
        return Sequences(nn.functional.normalize(x.values, dim=-1), x.mask)


@caught_by("gradient_at_zero_vectors")
class NaNGradientAtZeroOfY(Pooled):
    """The mistake of `NaNGradientAtZero`, for whole sequences of zeros in y."""

    def prepare_y(self, y: Sequences) -> tuple[Tensor, Sequences]:
        mean = y.values.sum(1)
        norm = mean.square().sum(-1, keepdim=True).sqrt()
        return torch.where(norm > 0, mean / norm, 0.0), Sequences(unit(y.values), y.mask)


@caught_by("magnitudes")
class OverflowsInHalf(Pooled):
    """Sums raw values in float16."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        total = x.values.half().sum(1).to(x.values.dtype)
        return unit(total), Sequences(unit(x.values), x.mask)


@caught_by("magnitudes")
class EpsTooLarge(Pooled):
    """An eps in the norm, larger than small inputs."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        total = x.values.sum(1)
        return total / (total.norm(dim=-1, keepdim=True) + 1e-6), super().prepare_x(x)[1]


@caught_by("shape_and_dtype")
class AlwaysFloat32(Pooled):
    """Returns float32 whatever it was given."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y).float()


@caught_by("forward_and_backward")
class OneScoreForAll(Pooled):
    """Returns one score for each row."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return (x[0] @ y[0].T).mean(1)


# Gradients


@caught_by("forward_and_backward")
class Detached(Pooled):
    """One side gets no gradient."""

    def prepare_y(self, y: Sequences) -> tuple[Tensor, Sequences]:
        pooled, steps = self.prepare_x(y)
        return pooled.detach(), steps


@caught_by("finite_differences")
class DetachedTemperature(SoftMatch):
    """A learnable temperature that does not learn."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        products = cosines(x, y)
        logits = products / self.log_temperature.detach().exp().to(products.dtype)
        shares = logits.masked_fill(~y.mask[None, :, None, :], -torch.inf).softmax(3)
        means = (shares * products).sum(3).masked_fill(~x.mask[:, None], 0.0)
        return means.sum(2) / x.lengths[:, None]


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


@caught_by("finite_differences")
class WrongBackward(Pooled):
    """A backward of its own, off by a factor."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return _WrongBackward.apply(super().score(x, y))


@caught_by("gradient_at_repeated_steps")
class TieDropsGradient(MaxSim):
    """Only a single winner gets a gradient; where two tie, none does."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        products = cosines(x, y).masked_fill(~real_pairs(x, y), -2.0)
        best = products.detach().amax(3, keepdim=True)
        wins = (products.detach() >= best - 1e-9) & real_pairs(x, y)
        alone = wins & (wins.sum(3, keepdim=True) == 1)
        kept = torch.where(alone, products, products.detach())
        values = (kept * wins).sum(3) / wins.sum(3).clamp(min=1)
        return values.sum(2) / x.lengths[:, None]


@caught_by("gradient_at_repeated_steps")
class TieCountsTwice(MaxSim):
    """Every winner gets the whole gradient."""

    def score(self, x: Sequences, y: Sequences) -> Tensor:
        products = cosines(x, y).masked_fill(~real_pairs(x, y), -2.0)
        best = products.detach().amax(3, keepdim=True)
        wins = (products.detach() >= best - 1e-9) & real_pairs(x, y)
        change = (torch.where(wins, products - products.detach(), 0.0)).sum(3)
        values = (best.squeeze(3) + change).masked_fill(~x.mask[:, None], 0.0)
        return values.sum(2) / x.lengths[:, None]


@caught_by("gradient_at_identical_sequences")
class RootOfADistance(Pooled):
    """The square root of a distance has no gradient where it is zero."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        apart = (x[0][:, None] - y[0]).square().sum(-1)
        return 1 - apart.clamp(min=0).sqrt()


class _BothSides(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x @ y.T

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        if not all(ctx.needs_input_grad):
            return gradient @ y * 0, gradient.T @ x * 0
        return gradient @ y, gradient.T @ x


@caught_by("frozen_side")
class BackwardWantsBothSides(Pooled):
    """A backward of its own gives nothing when one side is frozen."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return _BothSides.apply(x[0], y[0])


@caught_by("training_steps")
class KeepsTheGraph(Pooled):
    """A running mean that is not detached."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        pooled, steps = super().prepare_x(x)
        self.seen = 0.9 * self.seen.to(pooled.dtype) + 0.1 * pooled.mean()
        return pooled + 0 * self.seen, steps


# Precision


@caught_by("float32")
class HalfPrecisionInside(Pooled):
    """Casts to bfloat16 when it gets float32."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        if x[0].dtype == torch.float64:
            return super().score(x, y)
        return (x[0].bfloat16() @ y[0].bfloat16().T).to(x[0].dtype)


@caught_by("float32")
class CancelsInFloat32(Pooled):
    """The difference of two large numbers."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return (super().score(x, y) + 4096.0) - 4096.0


@caught_by("autocast")
class AutocastsItself(Pooled):
    """Turns autocast on again when the process runs under it."""

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=_autocast_outside()):
            return self.score(x, y).to(x[0].dtype)


def _autocast_outside() -> bool:
    # `forward` has turned autocast off, but a local variable of a frame above still says that it
    # was on.
    import inspect

    return any(
        frame.frame.f_locals.get("autocast") is True for frame in inspect.stack(context=0)[:12]
    )


@caught_by("compile")
class ReadsALength(Pooled):
    """A Python number from a tensor breaks the graph."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        longest = x.lengths.max().item()
        return super().prepare_x(x if longest > 1 else Sequences(x.values[:, :1], x.mask[:, :1]))


# The module


@caught_by("options")
class NeedsAnOption(Pooled):
    """An option without a default."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


WRONG[-1] = (lambda: NeedsAnOption(3), "options")


@caught_by("options")
class AnyOption(Pooled):
    """Takes whatever it is given."""

    def __init__(self, **options: float) -> None:
        super().__init__()


@caught_by("options")
class IgnoresEmbedDim(Pooled):
    """Takes `embed_dim` and has no projections."""

    def __init__(self, *, embed_dim: int | None = None) -> None:
        super().__init__()


@caught_by("final_methods")
class OwnForward(Pooled):
    """Overrides forward."""

    def forward(self, x: Tensor, y: Tensor, *masks: Tensor) -> Tensor:  # type: ignore[misc]
        return Similarity.forward(self, x, y, *masks)


@caught_by("deterministic")
class Random(Pooled):
    """Dropout that does not look at self.training."""

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y) * (1 - 0.01 * torch.rand(()).to(x[0].dtype))


@caught_by("deterministic")
class Remembers(Pooled):
    """A running mean that eval mode updates too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def score_all(self, x: tuple, y: tuple, steps: tuple[int, int]) -> Tensor:
        self.calls += 1
        return self.score(x, y) * (1 - 1e-4 * self.calls)


@caught_by("registered_tensors")
class UnregisteredTensor(Pooled):
    """A constant that .to() leaves behind."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(())


class _Scaled(Pooled):
    """Scores times a learnt number, which starts as 1."""

    def scale(self) -> nn.Module:
        raise NotImplementedError

    def score(self, x: tuple, y: tuple) -> Tensor:
        weight = self.scale().weight.squeeze()
        return super().score(x, y) * weight.clamp(max=1).to(x[0].dtype)


def _one() -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False)
    nn.init.ones_(linear.weight)
    return linear


@caught_by("registered_tensors")
class ModulesInAList(_Scaled):
    """Modules in a list are not optimised, moved or saved."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = [_one()]

    def scale(self) -> nn.Module:
        return self.heads[0]


@caught_by("registered_tensors")
class ModulesInADict(_Scaled):
    """Modules in a dict are not optimised, moved or saved."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = {"a": [_one()]}

    def scale(self) -> nn.Module:
        return self.heads["a"][0]


@caught_by("registered_tensors")
class ModuleInAnObject(_Scaled):
    """Modules in an object that torch does not know are not optimised, moved or saved."""

    def __init__(self) -> None:
        super().__init__()
        self.head = types.SimpleNamespace(linear=_one())

    def scale(self) -> nn.Module:
        return self.head.linear


@caught_by("registered_tensors")
class MethodOfAModule(Pooled):
    """Keeps a method of a module, and thereby the module."""

    def __init__(self) -> None:
        super().__init__()
        self.squash = _one().forward


@caught_by("registered_tensors")
class CachesATensor(Pooled):
    """Keeps what it has prepared."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        self.cache = {"x": super().prepare_x(x)}
        return self.cache["x"]


@caught_by("state_dict")
class UnsavedDraw(Pooled):
    """A number drawn in __init__ that is not in the state."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink = 0.5 + 0.5 * float(torch.rand(()))

    def score(self, x: tuple, y: tuple) -> Tensor:
        return super().score(x, y) * self.shrink


@caught_by("deepcopy")
class SharesItsParameter(SoftMatch):
    """A deepcopy holds the very same parameter."""

    def __deepcopy__(self, memo: dict) -> "SharesItsParameter":
        copied = type(self)()
        copied.eval()
        copied.log_temperature = self.log_temperature
        return copied


@caught_by("deepcopy")
class KeepsAGraph(Pooled):
    """A tensor of the last graph cannot be copied."""

    def prepare_x(self, x: Sequences) -> tuple[Tensor, Sequences]:
        self.last = super().prepare_x(x)[0]
        return self.last, Sequences(unit(x.values), x.mask)


@caught_by("pickle")
class KeepsALambda(Pooled):
    """A function that pickle cannot find."""

    def __init__(self) -> None:
        super().__init__()
        self.squash = lambda scores: scores


# The alignment


@caught_by("alignment_weights")
class NegativeWeights(Pooled):
    """Cosines that are not clamped."""

    def align(self, x: tuple, y: tuple) -> Tensor:
        return matched(x[1], y[1])[0]


@caught_by("alignment_weights")
class NaNWeights(MaxSim):
    """A softmax over nothing, in the rows that are padding."""

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        products, _ = matched(x, y)
        return products.clamp(min=0) / products.clamp(min=0).sum(2, keepdim=True)


@caught_by("alignment_alone")
class AlignsWithPadding(SoftMatch):
    """Padded steps take their share of the softmax."""

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        products, _ = matched(x, y)
        return (products / 0.2).softmax(2)


@caught_by("alignment_diagonal")
class AlignsOneTooFar(MaxSim):
    """Every step answers to the one after its match."""

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        return super().align(x, y).roll(1, 2)


@caught_by("alignment_diagonal")
class AlignsNothing(MaxSim):
    """No weights at all."""

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        return torch.zeros_like(super().align(x, y))


@caught_by("alignment_positions")
class TransposedAlignment(MaxSim):
    """Weights (n, l, t)."""

    def align(self, x: Sequences, y: Sequences) -> Tensor:
        return super().align(x, y).mT


# To break what the base class guarantees, `forward` or `explain` is replaced on one instance: no
# class may override them.

Forward = Callable[..., Tensor]


def broken_base(
    check: str, method: str = "forward", clean: type[Similarity] = MaxSim
) -> Callable[[Forward], Forward]:
    def note(function: Forward) -> Forward:
        def make() -> Similarity:
            similarity = clean()
            setattr(similarity, method, types.MethodType(function, similarity))
            return similarity

        make.__qualname__ = function.__name__
        WRONG.append((make, check))
        return function

    return note


def _as_given(x: Tensor, mask: Tensor | None) -> Sequences:
    return Sequences(x, x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)


@broken_base("padding_content")
def lets_padding_through(
    self: Similarity, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask=None
) -> Tensor:
    """Lower the scores by what lies in padding."""
    scores = Similarity.forward(self, x, y, x_mask, y_mask)
    return scores * (1 - 1e-3 * x.detach().nan_to_num(posinf=9, neginf=9).abs().sum().tanh())


@broken_base("padding_amount")
def counts_padding(
    self: Similarity, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask=None
) -> Tensor:
    """Lower the scores with T."""
    return Similarity.forward(self, x, y, x_mask, y_mask) * (1 - 1e-3 * x.shape[1])


@broken_base("mask_patterns")
def takes_masks_for_prefixes(
    self: Similarity, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask=None
) -> Tensor:
    """Read only the number of real steps from a mask."""
    masks = (
        None if m is None else torch.arange(m.shape[1]) < m.sum(1, keepdim=True)
        for m in (x_mask, y_mask)
    )
    return Similarity.forward(self, x, y, *masks)


@broken_base("padding_gradient")
def gradient_leaks(
    self: Similarity, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask=None
) -> Tensor:
    """Give right scores, and a small gradient to padded steps."""
    leak = 1e-6 * (x.nan_to_num() - x.detach().nan_to_num()).clamp(-1, 1).mean()
    return Similarity.forward(self, x, y, x_mask, y_mask) + leak


@broken_base("empty_sequences")
def empty_scores_zero(
    self: Similarity, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask=None
) -> Tensor:
    """Score a sequence without steps with 0."""
    scores = Similarity.forward(self, x, y, x_mask, y_mask)
    x, y = _as_given(x, x_mask), _as_given(y, y_mask)
    return scores.masked_fill(~(x.mask.any(1)[:, None] & y.mask.any(1)), 0.0)


@broken_base("alignment_weights", "explain")
def weights_on_padding(
    self: Similarity, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask=None
) -> Alignment:
    """Give a weight to every step, real or not."""
    found = Similarity.explain(self, x, y, x_mask, y_mask)
    return Alignment(found.score, found.weights + 0.1, found.mask)


@broken_base("alignment_positions", "explain")
def packed_positions(
    self: Similarity, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask=None
) -> Alignment:
    """Leave weights where packing put the steps."""
    found = Similarity.explain(self, x, y, x_mask, y_mask)
    weights = torch.zeros_like(found.weights)
    for i, (a, b) in enumerate(zip(found.mask.any(2), found.mask.any(1), strict=True)):
        part = found.weights[i][a][:, b]
        weights[i, : part.shape[0], : part.shape[1]] = part
    return Alignment(found.score, weights, found.mask)
