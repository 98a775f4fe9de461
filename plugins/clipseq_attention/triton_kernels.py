r"""Triton kernels of `clipseq_attention.scores.attention_scores`.

The same kernels compute one direction at a time, x as queries of y and then y as queries of x, as
in FlashAttention (arXiv:2205.14135): blocks of queries meet blocks of keys on tensor cores, with a
running maximum, so logits may have any size and no table of them leaves the registers. Unlike in
FlashAttention, a query attends to each of the other sequences separately.

1. `_attend` computes what each query attends to, head by head, and its cosine with the query. In
   forward, each program handles one pair and writes one number. In backward, each program handles
   one block of a pair's queries; it writes the means, the totals of their weights, and for each
   query the factors that come from its norm, for as many pairs at a time as `WORKSPACE` holds.
2. `_to_queries` computes the gradient to queries. There is one program per head and block of
   queries, which loops over the other sequences of the tile. It overwrites the means with the
   halves of u (see below), for the many programs that need them next.
3. `_to_keys` computes the gradient to keys in the same way. So no two programs add to the same
   number, and the order of every sum is fixed.

For a query q, let m = Σ a k be its mean (in one head), s = ‖m‖⁻¹ and c = ⟨q,m⟩ s² over all heads.
The gradient of the cosine to m is s·u, where ``u = q - c·m`` has at most the norm of q. Through the
softmax, the gradient to a product ⟨q, k⟩ is ``s·a·(⟨u,k⟩ - ⟨u,m⟩)`` times the scale. Without s,
which is unbounded, all factors lie within ±2, so two half-precision numbers can hold each of them
(see `clipseq.engine.halves`), scaled by `_LIFT` where small ones matter; s multiplies sums of
products, or is divided by the largest s of a block.

Weights are ``exp(logit - top)`` over their total. Backward receives the top and the total
separately: a single logarithm of both would be rounded relative to the size of the logits, and so
would all weights of a query.
"""

from typing import no_type_check

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from clipseq.engine import FEATURES, halves, jit_for_any, scaled, terms, tile_shape

WORKSPACE = 2**29
"""Largest number of bytes for means and their factors that backward holds in addition to the
results."""

_LARGEST_HEAD = 128
"""Largest number of features of a head: larger blocks do not fit into the registers."""

_NEVER = tl.constexpr(-3e38)
"""Logit of a padded key, below every other; finite, so that differences are never NaN."""

_LIFT = tl.constexpr(14.0)
_LOWER = tl.constexpr(2.0**-14)
"""Base 2 logarithm of the factor that weights get before they are split into halves, and the
inverse factor.

Half precision reaches from 2¹⁶ down to 2⁻²⁴, with ever fewer bits, and weights are small if there
are many keys.
"""

_SIZE = tl.constexpr(2.0**8)
"""Factor that steps get for the same reason: their rounding errors are multiplied by the scale."""

FEW = 2**10
"""Number of pairs below which one program per pair leaves a GPU partly idle."""

_NOTHING = tl.constexpr(1e-12)
"""Square of the norm below which what a query attends to has no direction."""


def supported(x: Tensor) -> bool:
    """Return True if the kernels take heads (B, H, T, d) with this number of features."""
    return x.shape[3] <= _LARGEST_HEAD


def forward(x: Tensor, y: Tensor, x_lengths: Tensor, y_lengths: Tensor, scale: Tensor) -> Tensor:
    """Return the (B, C) scores of heads x (B, H, T, d) and y (C, H, L, d), packed to the front."""
    with torch.cuda.device_of(x):
        one, other = _Side.make(x, x_lengths), _Side.make(y, y_lengths)
        over_y = _Direction(one, other, scale).scores()
        over_x = _Direction(other, one, scale).scores()
        return over_y.add_(over_x.mT).div_(2)


def backward(
    grad: Tensor,
    scores: Tensor,
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to x, y and scale, computing every tile again.

    `scores` is not used: only torch's own path needs it.
    """
    with torch.cuda.device_of(x):
        shares, largest = scaled(grad)
        shares /= 2
        one, other = _Side.make(x, x_lengths), _Side.make(y, y_lengths)
        grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
        to_scale = x.new_zeros((), dtype=torch.float64)
        for direction, share, to_queries, to_keys in (
            (_Direction(one, other, scale), shares / x_lengths[:, None], grad_x, grad_y),
            (_Direction(other, one, scale), shares.mT / y_lengths[:, None], grad_y, grad_x),
        ):
            to_scale += direction.add_gradients(share, to_queries, to_keys)
        return grad_x.mul_(largest), grad_y.mul_(largest), (to_scale * largest).to(scale.dtype)


@attrs.frozen(eq=False)
class _Side:
    """Sequences of one side, head by head."""

    high: Tensor  # (n, H, S, d'), d' a power of 2
    low: Tensor
    lengths: Tensor

    @classmethod
    def make(cls, values: Tensor, lengths: Tensor) -> "_Side":
        count, heads, steps, features = values.shape
        padded = max(FEATURES, triton.next_power_of_2(features))
        if padded > features:
            values = nn.functional.pad(values, (0, padded - features))
        shape = count, heads, steps, padded
        high, low = halves(values.reshape(-1, steps, padded) * _SIZE.value)
        return cls(high.view(shape), low.view(shape), lengths.contiguous())

    def __getitem__(self, where: slice) -> "_Side":
        return _Side(self.high[where], self.low[where], self.lengths[where])


@attrs.frozen(eq=False)
class _Direction:
    """The queries of one side over the keys of the other."""

    queries: _Side
    keys: _Side
    scale: Tensor

    def scores(self) -> Tensor:
        """Return the mean cosine of each sequence of queries with what it attends to, (n, m)."""
        n, m = len(self.queries.lengths), len(self.keys.lengths)
        # One program per pair is enough, unless there are few pairs.
        programs = 1 if n * m >= FEW else self._blocks_of_queries()
        parts = self.scale.new_empty(programs, n, m)
        self._attend(parts, None, programs)
        return parts[0] if programs == 1 else parts.sum(0)

    def add_gradients(self, shares: Tensor, to_queries: Tensor, to_keys: Tensor) -> Tensor:
        """Add the gradients of each cosine times its share (n, m); return the gradient to scale."""
        n, heads, steps, size = self.queries.high.shape
        m = len(self.keys.lengths)
        to_scale = shares.new_zeros((), dtype=torch.float64)
        of_a_pair = 4 * steps * (heads * (size + 3) + 2)
        height, width = tile_shape(n, m, max(1, WORKSPACE // of_a_pair))
        # Keep the number of tiles, but make them equally large.
        height, width = (
            triton.cdiv(n, triton.cdiv(n, height)),
            triton.cdiv(m, triton.cdiv(m, width)),
        )
        # The memory fits the largest tile; the others use the front of it.
        kept = [
            shares.new_empty(height * width * steps * numbers)
            for numbers in (1, heads * size, heads, heads, 1, heads)
        ]
        # Two halves replace one number: each row of means becomes a high row and a low row.
        kept.append(kept[1].view(torch.float16))
        for row in range(0, n, height):
            for column in range(0, m, width):
                i, j = slice(row, row + height), slice(column, column + width)
                tile = _Direction(self.queries[i], self.keys[j], self.scale)
                tile._attend(None, kept, self._blocks_of_queries())
                to_scale += tile._add_to_queries(kept, shares[i, j], to_queries[i])
                tile._add_to_keys(kept, shares[i, j], to_keys[j])
        return to_scale

    def _attend(self, out: Tensor | None, kept: list[Tensor] | None, programs: int) -> None:
        """Write the scores, with `programs` programs per pair, or what backward needs."""
        n, heads, steps, size = self.queries.high.shape
        m, _, length, _ = self.keys.high.shape
        block = _block(steps, _rows_at_once(size))
        unused = self.scale
        _attend[(n * m, programs)](
            *self._factors(),
            self.scale,
            unused if out is None else out,
            *([unused] * 5 if kept is None else kept[:5]),
            m,
            steps,
            length,
            heads,
            TERMS=terms(),
            KEEP=kept is not None,
            HEAD=size,
            BLOCK_Q=block,
            BLOCK_K=_block(length, _rows_at_once(size)),
            num_warps=_warps(block, size),
        )

    def _add_to_queries(self, kept: list[Tensor], shares: Tensor, to: Tensor) -> Tensor:
        n, heads, steps, size = self.queries.high.shape
        m, _, length, _ = self.keys.high.shape
        block = _block(steps, _rows_at_once(size))
        grid = n, self._blocks_of_queries(), heads
        to_scale = shares.new_zeros(grid)
        _to_queries[grid](
            to,
            to_scale,
            *self._factors(),
            self.scale,
            *kept,
            shares,
            *shares.stride(),
            m,
            steps,
            length,
            heads,
            to.shape[3],
            *to.stride(),
            TERMS=terms(),
            HEAD=size,
            BLOCK_Q=block,
            BLOCK_K=_block(length, 32),
            num_warps=_warps(block, size),
        )
        return to_scale.sum(dtype=torch.float64)

    def _add_to_keys(self, kept: list[Tensor], shares: Tensor, to: Tensor) -> None:
        n, heads, steps, size = self.queries.high.shape
        m, _, length, _ = self.keys.high.shape
        block = _block(length, max(32, 2048 // size))
        _to_keys[(m, triton.cdiv(length, block), heads)](
            to,
            *self._factors(),
            self.scale,
            *kept[2:],
            shares,
            *shares.stride(),
            n,
            m,
            steps,
            length,
            heads,
            to.shape[3],
            *to.stride(),
            TERMS=terms(),
            HEAD=size,
            BLOCK_Q=_block(steps, 1024 // size),
            BLOCK_K=block,
            num_warps=_warps(block, size),
        )

    def _blocks_of_queries(self) -> int:
        *_, steps, size = self.queries.high.shape
        return triton.cdiv(steps, _block(steps, _rows_at_once(size)))

    def _factors(self) -> tuple[Tensor, ...]:
        q, k = self.queries, self.keys
        return q.high, q.low, k.high, k.low, q.lengths, k.lengths


def _rows_at_once(size: int) -> int:
    """Return the largest number of rows of a block of queries that stays in the registers."""
    return 64 if size == FEATURES else 32


def _block(steps: int, most: int) -> int:
    """Return the number of steps in a block: large, if the last block then has little padding."""
    blocks = [block for block in (64, 32, 16) if block <= max(16, most)]
    return min(blocks, key=lambda block: triton.cdiv(steps, block) * (block + 16))


def _warps(rows: int, size: int) -> int:
    """Return the warps of a program: each has 16 rows of a block, or all share the features."""
    return rows // 16 if size == FEATURES else size // 16


@triton.jit
@no_type_check
def _rows(high, low, first, steps, real, HEAD: tl.constexpr):
    """Return both halves of rows `steps` of a head that begins at row `first`; 0 if not real."""
    at = (first + steps)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    return (
        tl.load(high + at, mask=real[:, None], other=0.0),
        tl.load(low + at, mask=real[:, None], other=0.0),
    )


@triton.jit
@no_type_check
def _added(total, a, a_rest, b, b_rest, TERMS: tl.constexpr):
    """Return the total plus the product of a and b."""
    total = tl.dot(a, b, total)
    if TERMS == 3:
        total = tl.dot(a, b_rest, total)
        total = tl.dot(a_rest, b, total)
    return total


@triton.jit
@no_type_check
def _halves(values):
    """Return two half-precision numbers for each number, which must be in their range."""
    high = values.to(tl.float16)
    return high, (values - high.to(tl.float32)).to(tl.float16)


@jit_for_any(sizes=["columns", "steps", "length"])
@no_type_check
def _attend(
    q_high,
    q_low,
    k_high,
    k_low,
    q_lengths,
    k_lengths,
    scale,
    out,
    ratios,
    means,
    tops,
    totals,
    inverses,
    columns,
    steps,
    length,
    heads,
    TERMS: tl.constexpr,
    KEEP: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    i, j = pair // columns, pair % columns
    t, l = tl.load(q_lengths + i).to(tl.int32), tl.load(k_lengths + j).to(tl.int32)  # noqa: E741
    exponent = tl.load(scale) * 1.4426950408889634 / (_SIZE * _SIZE)  # of 2
    d = tl.arange(0, HEAD)
    cosines = tl.zeros((BLOCK_Q,), tl.float32)
    for first in range(tl.program_id(1) * BLOCK_Q, t, tl.num_programs(1) * BLOCK_Q):
        a = first + tl.arange(0, BLOCK_Q)
        a_real = a < t
        along = tl.zeros((BLOCK_Q,), tl.float32)
        squares = tl.zeros((BLOCK_Q,), tl.float32)
        for h in range(heads):
            q, q_rest = _rows(q_high, q_low, (i * heads + h) * steps, a, a_real, HEAD)
            top = tl.full((BLOCK_Q,), _NEVER, tl.float32)
            total = tl.zeros((BLOCK_Q,), tl.float32)
            mean = tl.zeros((BLOCK_Q, HEAD), tl.float32)
            for k_first in range(0, l, BLOCK_K):
                b = k_first + tl.arange(0, BLOCK_K)
                b_real = b < l
                k, k_rest = _rows(k_high, k_low, (j * heads + h) * length, b, b_real, HEAD)
                logits = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
                logits = _added(logits, q, q_rest, tl.trans(k), tl.trans(k_rest), TERMS)
                logits = tl.where(b_real[None, :], logits * exponent, _NEVER)
                higher = tl.maximum(top, tl.max(logits, 1))
                weights = tl.exp2(logits - higher[:, None] + _LIFT)
                less = tl.exp2(top - higher)
                top = higher
                total = total * less + tl.sum(weights, 1)
                weights, weights_rest = _halves(weights)
                mean = _added(mean * less[:, None], weights, weights_rest, k, k_rest, TERMS)
            mean /= (total * _SIZE)[:, None]
            query = (q.to(tl.float32) + q_rest.to(tl.float32)) / _SIZE
            along += tl.sum(mean * query, 1)
            squares += tl.sum(mean * mean, 1)
            if KEEP:
                at = (pair * heads + h) * steps + a
                tl.store(tops + at, top, mask=a_real)
                tl.store(totals + at, total, mask=a_real)
                tl.store(means + at[:, None] * HEAD + d[None, :], mean, mask=a_real[:, None])
        something = squares >= _NOTHING
        squares = tl.where(something, squares, 1.0)
        inverse = tl.where(something, 1 / tl.sqrt(squares), 0.0)
        if KEEP:
            tl.store(inverses + pair * steps + a, inverse, mask=a_real)
            ratio = tl.where(something, along / squares, 0.0)
            tl.store(ratios + pair * steps + a, ratio, mask=a_real)
        cosines += tl.where(a_real, along * inverse, 0.0)
    if not KEEP:
        to = out + tl.program_id(1) * tl.num_programs(0).to(tl.int64) + pair
        tl.store(to, tl.sum(cosines, 0) / t)


@triton.jit
@no_type_check
def _cells(q, q_rest, u, u_rest, k, k_rest, exponent, top, common, TERMS: tl.constexpr):
    """Return the lifted weights of keys, not yet divided by their total, and the logits' gradients.

    The values of padded keys are finite; they are multiplied by zeros or not stored.
    """
    k_t, k_rest_t = tl.trans(k), tl.trans(k_rest)
    nothing = tl.zeros((q.shape[0], k.shape[0]), tl.float32)
    logits = _added(nothing, q, q_rest, k_t, k_rest_t, TERMS)
    to_weights = _added(nothing, u, u_rest, k_t, k_rest_t, TERMS) / (_SIZE * _SIZE)
    # A logit may exceed the top, either by rounding in other blocks or because its key is padding.
    weights = tl.exp2(tl.minimum(logits * exponent - top[:, None], 0.0) + _LIFT)
    return weights, weights * (to_weights - common[:, None])


@jit_for_any(sizes=["columns", "steps", "length"], strides=["shares_0", "shares_1"])
@no_type_check
def _to_queries(
    to,
    to_scale,
    q_high,
    q_low,
    k_high,
    k_low,
    q_lengths,
    k_lengths,
    scale,
    ratios,
    means,
    tops,
    totals,
    inverses,
    commons,
    u_halves,
    shares,
    shares_0,
    shares_1,
    columns,
    steps,
    length,
    heads,
    features,
    to_0,
    to_1,
    to_2,
    to_3,
    TERMS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i, h = tl.program_id(0).to(tl.int64), tl.program_id(2)
    a = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    t = tl.load(q_lengths + i).to(tl.int32)
    if tl.program_id(1) * BLOCK_Q >= t:
        return
    a_real = a < t
    times = tl.load(scale)
    exponent = times * 1.4426950408889634 / (_SIZE * _SIZE)
    q, q_rest = _rows(q_high, q_low, (i * heads + h) * steps, a, a_real, HEAD)
    query = (q.to(tl.float32) + q_rest.to(tl.float32)) / _SIZE
    d = tl.arange(0, HEAD)
    by_logits = tl.zeros((BLOCK_Q, HEAD), tl.float32)
    by_cosines = tl.zeros((BLOCK_Q, HEAD), tl.float32)
    for number in range(columns):
        j = tl.cast(number, tl.int64)
        l = tl.load(k_lengths + j).to(tl.int32)  # noqa: E741
        of_query = (i * columns + j) * steps + a
        of_head = ((i * columns + j) * heads + h) * steps + a
        inverse = tl.load(inverses + of_query, mask=a_real, other=0.0)
        ratio = tl.load(ratios + of_query, mask=a_real, other=0.0)
        top = tl.load(tops + of_head, mask=a_real, other=0.0)
        total = tl.load(totals + of_head, mask=a_real, other=1.0)
        at = of_head[:, None] * HEAD + d[None, :]
        mean = tl.load(means + at, mask=a_real[:, None], other=0.0)
        across = query - ratio[:, None] * mean
        common = tl.sum(across * mean, 1)
        u, u_rest = _halves(across * _SIZE)
        tl.store(commons + of_head, common, mask=a_real)
        # Other threads may not have read the values yet that this one overwrites.
        tl.debug_barrier()
        at = 2 * of_head[:, None] * HEAD + d[None, :]
        tl.store(u_halves + at, u, mask=a_real[:, None])
        tl.store(u_halves + at + HEAD, u_rest, mask=a_real[:, None])
        part = tl.zeros((BLOCK_Q, HEAD), tl.float32)
        for k_first in range(0, l, BLOCK_K):
            b = k_first + tl.arange(0, BLOCK_K)
            b_real = b < l
            k, k_rest = _rows(k_high, k_low, (j * heads + h) * length, b, b_real, HEAD)
            _, to_logits = _cells(q, q_rest, u, u_rest, k, k_rest, exponent, top, common, TERMS)
            to_logits, to_logits_rest = _halves(to_logits)
            part = _added(part, to_logits, to_logits_rest, k, k_rest, TERMS)
        share = inverse * tl.load(shares + i * shares_0 + j * shares_1)
        by_logits += (share / (total * _SIZE))[:, None] * part
        by_cosines += share[:, None] * mean
    block = i * tl.num_programs(1) + tl.program_id(1)
    tl.store(to_scale + block * heads + h, tl.sum(tl.sum(by_logits * query, 1), 0))
    _add(
        to, i, h, a, a_real, by_logits * times + by_cosines, features, to_0, to_1, to_2, to_3, HEAD
    )


@jit_for_any(sizes=["rows", "columns", "steps", "length"], strides=["shares_0", "shares_1"])
@no_type_check
def _to_keys(
    to,
    q_high,
    q_low,
    k_high,
    k_low,
    q_lengths,
    k_lengths,
    scale,
    tops,
    totals,
    inverses,
    commons,
    u_halves,
    shares,
    shares_0,
    shares_1,
    rows,
    columns,
    steps,
    length,
    heads,
    features,
    to_0,
    to_1,
    to_2,
    to_3,
    TERMS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    j, h = tl.program_id(0).to(tl.int64), tl.program_id(2)
    b = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    l = tl.load(k_lengths + j).to(tl.int32)  # noqa: E741
    if tl.program_id(1) * BLOCK_K >= l:
        return
    b_real = b < l
    times = tl.load(scale)
    exponent = times * 1.4426950408889634 / (_SIZE * _SIZE)
    k, k_rest = _rows(k_high, k_low, (j * heads + h) * length, b, b_real, HEAD)
    total = tl.zeros((BLOCK_K, HEAD), tl.float32)
    for number in range(rows):
        i = tl.cast(number, tl.int64)
        t = tl.load(q_lengths + i).to(tl.int32)
        weight = tl.load(shares + i * shares_0 + j * shares_1)
        for first in range(0, t, BLOCK_Q):
            a = first + tl.arange(0, BLOCK_Q)
            a_real = a < t
            q, q_rest = _rows(q_high, q_low, (i * heads + h) * steps, a, a_real, HEAD)
            pair = i * columns + j
            of_head = (pair * heads + h) * steps
            u, u_rest = _rows(u_halves, u_halves + HEAD, 2 * of_head, 2 * a, a_real, HEAD)
            inverse = tl.load(inverses + pair * steps + a, mask=a_real, other=0.0)
            top = tl.load(tops + of_head + a, mask=a_real, other=0.0)
            sum_of_all = tl.load(totals + of_head + a, mask=a_real, other=1.0)
            common = tl.load(commons + of_head + a, mask=a_real, other=0.0)
            # The weights are lifted, and so is their total.
            share = inverse * weight / (sum_of_all * _LOWER)
            largest = tl.maximum(tl.max(tl.abs(share), 0), 1e-37)
            weights, to_logits = _cells(
                q, q_rest, u, u_rest, k, k_rest, exponent, top, common, TERMS
            )
            # These are at most 1 in magnitude.
            within = (share / largest)[:, None]
            weights, weights_rest = _halves(weights * within)
            to_logits, to_logits_rest = _halves(to_logits * within)
            part = tl.zeros((BLOCK_K, HEAD), tl.float32)
            part = _added(part, tl.trans(to_logits), tl.trans(to_logits_rest), q, q_rest, TERMS)
            part *= times
            part = _added(part, tl.trans(weights), tl.trans(weights_rest), u, u_rest, TERMS)
            total += largest * (_LOWER / _SIZE) * part
    _add(to, j, h, b, b_real, total, features, to_0, to_1, to_2, to_3, HEAD)


@triton.jit
@no_type_check
def _add(to, i, h, steps, real, values, features, to_0, to_1, to_2, to_3, HEAD: tl.constexpr):
    """Add `values` to the gradient of some steps of a head."""
    d = tl.arange(0, HEAD)
    at = to + i * to_0 + h * to_1 + steps[:, None].to(tl.int64) * to_2 + d[None, :] * to_3
    inside = real[:, None] & (d < features)[None, :]
    tl.store(at, tl.load(at, mask=inside, other=0.0) + values, mask=inside)
