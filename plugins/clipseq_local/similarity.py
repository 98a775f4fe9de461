"""MaxSim over sliding windows."""

from numbers import Real
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipseq import Sequences, Similarity, unit
from clipseq.engine import (
    Room,
    few_items,
    first_derivative_only,
    loops_pay,
    positive_integer,
    single_number,
    to_unit,
    unit_gradient,
    zeroed,
)
from clipseq_local.scores import local_scores, maxima


class LocalSimilarity(Similarity):
    r"""The mean cosine of each window with its best match in the other sequence, both ways.

    .. math::
        S = \tfrac12 \Big( \tfrac1{|U|}\sum_{u \in U} \max_{v \in V} u \cdot v
            + \tfrac1{|V|}\sum_{v \in V} \max_{u \in U} u \cdot v \Big)

    A window is the mean of its real steps, L2-normalised. Windows start every `stride` steps until
    one reaches the last real step; a window that extends past that step consists of the real steps
    that it covers. A sequence shorter than the window is one window. (A stride longer than the
    window skips steps.) A window below 1 is a share of each sequence: ``window=1/6`` takes 5 of 30
    steps, and 1 of 5.

    ``window=1`` is the symmetrised mean MaxSim of FILIP (arXiv:2111.07783). With
    ``direction="x"``, it is that of ColBERT with x as the query (arXiv:2004.12832, which sums where
    we average). A window longer than both sequences gives ``global`` with mean pooling. Cost:
    O(B·C·W·V·D) for W and V windows, in one matrix product of all windows with all others; some
    passes over its cells for the maxima, which take longer than the product if sequences are short;
    and in backward a gather and a scatter of the maxima. If the places of the maxima would take
    more memory than the steps, backward searches for them again.

    Args:
        window: number of steps in a window, or a pair of numbers, for x and for y. A number below 1
            is a share of the sequence's real steps, rounded, and at least one step.
        stride: number of steps from the start of one window to the next, or a pair.
        direction: "both", or one of the two means alone: "x" finds the best match of each window of
            x (MaxSim with x as the query), "y" that of each window of y.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: a window is neither a positive integer nor a share between 0 and 1; a stride is
            below 1.
    """

    default_weight = 0.5
    combined_options = MappingProxyType({"window": (1 / 6, 1)})
    operators = (maxima,)

    def __init__(
        self,
        *,
        window: int | float | tuple[int | float, int | float] = 16,
        stride: int | tuple[int, int] = 1,
        direction: Literal["both", "x", "y"] = "both",
        embed_dim: int | None = None,
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        if not isinstance(direction, str) or direction not in _X_WEIGHTS:
            raise ValueError(f"direction must be one of {', '.join(_X_WEIGHTS)}, got {direction!r}")
        self.direction = direction
        self.window = _check_windows(window)
        self.stride = _check_pair("stride", stride)

    def degenerate(self, x_steps: int, y_steps: int) -> tuple[str, ...]:
        """Name each side on which one window covers every sequence."""
        return tuple(
            f"has a window of {window} steps for {side}, which covers every {side} (the longest "
            f"has {steps}), so that its parts are not compared; set a window that is shorter, or "
            "a share of each sequence such as 1/6"
            for side, window, steps in zip("xy", self.window, (x_steps, y_steps), strict=True)
            if window >= steps
        )

    def prepare_x(self, x: Sequences) -> Sequences:
        """Return the unit windows of x."""
        return _windows(x, self.window[0], self.stride[0])

    def prepare_y(self, y: Sequences) -> Sequences:
        """Return the unit windows of y."""
        return _windows(y, self.window[1], self.stride[1])

    def prepare_align_x(self, x: Sequences) -> tuple[Sequences, Bool[Tensor, "B T"]]:
        """Return the unit windows of x, and the mask of its steps."""
        return self.prepare_x(x), x.mask

    def prepare_align_y(self, y: Sequences) -> tuple[Sequences, Bool[Tensor, "B T"]]:
        """Return the unit windows of y, and the mask of its steps."""
        return self.prepare_y(y), y.mask

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        return local_scores(x.values, y.values, x.lengths, y.lengths, _X_WEIGHTS[self.direction])

    def score_all(self, x: Sequences, y: Sequences, steps: tuple[int, int]) -> Float[Tensor, "B C"]:
        """Score everything at once, since the operator cuts its own tiles."""
        return self.score(x, y)

    def score_pairs(self, x: Sequences, y: Sequences) -> Float[Tensor, "n"]:
        cosines = torch.bmm(x.values, y.values.mT)
        over_y = cosines.masked_fill(~y.mask[:, None, :], -torch.inf).max(2).values
        over_x = cosines.masked_fill(~x.mask[:, :, None], -torch.inf).max(1).values
        mean_y = over_y.masked_fill(~x.mask, 0.0).sum(1) / x.lengths
        mean_x = over_x.masked_fill(~y.mask, 0.0).sum(1) / y.lengths
        weight = _X_WEIGHTS[self.direction]
        return (weight * mean_y + (2 - weight) * mean_x) / 2

    def align(
        self, x: tuple[Sequences, Tensor], y: tuple[Sequences, Tensor]
    ) -> Float[Tensor, "n t l"]:
        """Weigh each pair of steps by its share of the score, through the windows that contain it.

        The cosine of a window and its best match, where positive, is shared equally among the real
        steps of both windows. For ``window=1``, a weight is the cosine at each maximum, and 0
        elsewhere.
        """
        (u, x_mask), (v, y_mask) = x, y
        cosines = torch.bmm(u.values, v.values.mT)
        real = u.mask[:, :, None] & v.mask[:, None, :]
        masked = cosines.masked_fill(~real, -torch.inf)
        chosen_v = torch.zeros_like(cosines).scatter(2, masked.argmax(2, keepdim=True), 1.0)
        chosen_u = torch.zeros_like(cosines).scatter(1, masked.argmax(1, keepdim=True), 1.0)
        weight = _X_WEIGHTS[self.direction]
        pairs = weight * chosen_v / u.lengths[:, None, None]
        pairs = pairs + (2 - weight) * chosen_u / v.lengths[:, None, None]
        pairs = (pairs * cosines.clamp(min=0.0) / 2).masked_fill(~real, 0.0)
        x_share = _shares(x_mask, u.mask, self.window[0], self.stride[0], cosines.dtype)
        y_share = _shares(y_mask, v.mask, self.window[1], self.stride[1], cosines.dtype)
        return x_share.mT @ pairs @ y_share


_X_WEIGHTS = {"both": 1, "x": 2, "y": 0}
"""The weight, out of 2, of the mean over x, for each direction."""


def _check_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = value if isinstance(value, tuple | list) else (value, value)
    match [positive_integer(number) for number in pair]:
        case [int(x), int(y)]:
            return x, y
    raise ValueError(f"{name} must be a positive integer or a pair of them, got {value!r}")


def _check_windows(window: object) -> tuple[int | float, int | float]:
    pair = window if isinstance(window, tuple | list) else (window, window)
    match [positive_integer(size) or _share(size) for size in pair]:
        case [int() | float() as x, int() | float() as y]:
            return x, y
    raise ValueError(
        f"window must be a positive integer or a share between 0 and 1, or a pair of them, "
        f"got {window!r}"
    )


def _share(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number = single_number(value)  # None for a number that no float can hold
    return number if number is not None and 0 < number < 1 else None


def _share_of(lengths: Int[Tensor, "B"], share: float) -> Int[Tensor, "B"]:
    """Return the number of steps in a window of each sequence."""
    return (lengths * share + 0.5).floor().long().clamp(min=1)


def _windows(x: Sequences, window: int | float, stride: int) -> Sequences:
    """Return the unit mean of the real steps in each window of x, which is packed to the front."""
    if window < 1:
        return _relative_windows(x, window, stride)
    return _fixed_windows(x, int(window), stride)


def _relative_windows(x: Sequences, share: float, stride: int) -> Sequences:
    sizes, steps = _share_of(x.lengths, share), x.values.shape[1]
    # The longest possible sequence has the most windows; rounding down gives a bound on them.
    last = steps  # a bound that depends on the share would fix the number of steps in a graph
    if not torch.compiler.is_compiling():
        last = min(steps - max(1, int(steps * share)) + stride, steps)
    starts = torch.arange(0, last, stride, device=x.values.device)
    # A window is needed if the one before it did not reach the last real step.
    mask = (starts == 0) | (starts - stride + sizes[:, None] < x.lengths[:, None])
    mask &= starts < x.lengths[:, None]
    inside = _inside(starts, sizes[:, None, None], steps) & mask[..., None]
    # Padding is zero and `unit` removes any factor; dividing first keeps large values finite.
    shares = inside.to(x.values.dtype) / sizes[:, None, None]
    return Sequences(unit(torch.bmm(shares, x.values)), mask)


def _inside(starts: Int[Tensor, "W"], sizes: int | Tensor, steps: int) -> Bool[Tensor, "*n W T"]:
    """Return True where a step lies in the window with that start, which has `sizes` steps."""
    offsets = torch.arange(steps, device=starts.device) - starts[:, None]
    return (offsets >= 0) & (offsets < sizes)


def _fixed_windows(x: Sequences, window: int, stride: int) -> Sequences:
    steps = x.values.shape[1]
    if isinstance(steps, torch.SymInt):  # tracing: a comparison would fix the number of steps
        # One masked window more than needed: a graph would fix a number of windows that is 1.
        count = (torch.sym_max(steps, window) - window + stride - 1) // stride + 2
    else:
        window, stride = min(window, steps), min(stride, steps)  # larger ones change nothing
        if stride == 1:  # then no window reaches past the end
            count = steps - window + 1
        else:
            count = min(-(-(steps - window) // stride) + 1, -(-steps // stride))
    counts = -(-(x.lengths - window).clamp(min=0) // stride) + 1
    counts = torch.minimum(counts, -(-x.lengths // stride))
    mask = torch.arange(count, device=x.values.device) < counts[:, None]
    if window == 1:
        values = unit(x.values[:, ::stride])
    elif loops_pay(x.values):
        values, _ = _UnitSums.apply(x.values, mask, window, stride)
    else:
        values = _unit_means(x.values, mask, window, stride)
    return Sequences(values, mask)


def _unit_means(
    values: Float[Tensor, "B T D"], mask: Bool[Tensor, "B W"], window: int, stride: int
) -> Float[Tensor, "B W D"]:
    # Padding is zero and `unit` removes any factor, so the plain mean of a window is enough.
    traced = isinstance(values.shape[1], torch.SymInt)
    if stride > 1 or traced:  # otherwise there is nothing to pad, and pad would copy
        reach = (mask.shape[1] - 1) * stride + window
        values = nn.functional.pad(values, (0, 0, 0, reach - values.shape[1]))
    means = nn.functional.avg_pool1d(values.mT, window, stride).mT
    # Padded steps are zero, but padded windows may reach a real step.
    return unit(means.masked_fill(~mask[..., None], 0.0))


class _UnitSums(torch.autograd.Function):
    """`_unit_means` by matrix products, a few sequences at a time, with small intermediate results.

    It does not have a second derivative, and neither do the scores.
    """

    @staticmethod
    def forward(values: Tensor, mask: Tensor, window: int, stride: int) -> tuple[Tensor, Tensor]:
        steps, (_, count) = values.shape[1], mask.shape
        units = values.new_empty(*mask.shape, values.shape[2])
        inverse = values.new_empty(*mask.shape, 1)
        block = min(count, max(1, _BLOCK // stride))
        reach = min((block - 1) * stride + window, steps)
        members = _members(block, slice(0, reach), window, stride, values)
        for part, norms, source, real in few_items(units, inverse, values, mask):
            # Compute sums, or means where sums would overflow.
            for scale in (1.0, 1 / window):
                for first in range(0, count, block):
                    some = slice(first, min(first + block, count))
                    within = slice(first * stride, min((some.stop - 1) * stride + window, steps))
                    shares = members[: some.stop - first, : within.stop - within.start] * scale
                    shares = shares.expand(len(part), -1, -1)
                    torch.bmm(shares, source[:, within], out=part[:, some])
                if not bool(real.all()):
                    part.copy_(zeroed(part, real))
                norms.copy_(to_unit(part, out=part)).mul_(scale)
                if bool(norms.isfinite().all()):
                    break
        return units, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        values, _, ctx.window, ctx.stride = inputs
        ctx.steps = values.shape[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        units, inverse = ctx.saved_tensors
        window, stride, (batch, count, size) = ctx.window, ctx.stride, units.shape
        if not loops_pay(grad):
            members = _members(count, slice(0, ctx.steps), window, stride, units)
            return members.mT @ unit_gradient(grad, units, inverse), None, None, None
        found = grad.new_empty(batch, ctx.steps, size)
        # A block starts at the start of a window; the `before` preceding windows reach into it.
        block, before = -(-_BLOCK // stride) * stride, (window - 1) // stride
        reach = slice(before * stride, before * stride + block)
        members = _members(before + block // stride, reach, window, stride, grad).mT
        room = Room(units)
        for part, to_units, some_units, norms in few_items(found, grad, units, inverse):
            to_sums = room.take("to sums", len(part), count, size)
            unit_gradient(to_units, some_units, norms, out=to_sums)
            for first in range(0, ctx.steps, block):
                some = slice(first, min(first + block, ctx.steps))
                start = first // stride - before
                around = slice(max(0, start), min(count, -(-some.stop // stride)))
                shares = members[: some.stop - first, around.start - start : around.stop - start]
                torch.bmm(shares.expand(len(part), -1, -1), to_sums[:, around], out=part[:, some])
        return found, None, None, None


_BLOCK = 128
"""Approximate number of steps that one product covers, as starts of windows or as gradients."""


def _members(windows: int, steps: slice, window: int, stride: int, like: Tensor) -> Tensor:
    """Return (windows, steps), 1 where a step lies in a window; the first starts at step 0."""
    starts = torch.arange(windows, device=like.device)[:, None] * stride
    offsets = torch.arange(steps.start, steps.stop, device=like.device) - starts
    return ((offsets >= 0) & (offsets < window)).to(like.dtype)


def _shares(
    steps: Bool[Tensor, "n T"],
    windows: Bool[Tensor, "n W"],
    window: int | float,
    stride: int,
    dtype: torch.dtype,
) -> Float[Tensor, "n W T"]:
    """Return the share of each real step in each window: 1/m if the window has m of them."""
    starts = torch.arange(windows.shape[1], device=steps.device) * stride
    sizes = int(window) if window >= 1 else _share_of(steps.sum(1), window)[:, None, None]
    inside = _inside(starts, sizes, steps.shape[1]) & steps[:, None, :] & windows[:, :, None]
    return inside.to(dtype) / inside.sum(2, keepdim=True).clamp(min=1)
