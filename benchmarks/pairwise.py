"""The similarities written in the usual way, from their formulas: autograd through plain torch.

Each is written once for all pairs, with the whole (B, C, T, L) tensor, and once as a loop over
pairs. They share no code with the plugins and give the same scores.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, normalize, pad

FAR = 1e6
"""Cost larger than that of any path; finite, so that no gradient is NaN."""


def lengths(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the numbers of real steps (B,); in these masks the real steps come first."""
    return torch.full((len(values),), values.shape[1]) if mask is None else mask.sum(1)


def real(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return a mask (B, T) that is True at real steps."""
    return values.new_ones(values.shape[:2], dtype=torch.bool) if mask is None else mask


def looped(pair: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a function that calls `pair` with (t, D) and (l, D) for each pair in turn."""

    def scores(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
        t, length = lengths(x, x_mask).tolist(), lengths(y, y_mask).tolist()
        rows = []
        for i in range(len(x)):
            for j in range(len(y)):
                rows.append(pair(x[i, : t[i]], y[j, : length[j]]))
        return torch.stack(rows).view(len(x), len(y))

    return scores


def global_pair(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine of the means."""
    return torch.cosine_similarity(x.mean(0), y.mean(0), dim=0)


def local_pair(window: float, other: float | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return MaxSim over windows of x and y; one below 1 is a share of the steps, rounded."""

    def windows(x: Tensor, size: float) -> Tensor:
        steps = int(size) if size >= 1 else max(1, int(len(x) * size + 0.5))
        return normalize(x.unfold(0, min(steps, len(x)), 1).mean(2), dim=1)

    def pair(x: Tensor, y: Tensor) -> Tensor:
        cosines = windows(x, window) @ windows(y, window if other is None else other).T
        return (cosines.amax(1).mean() + cosines.amax(0).mean()) / 2

    return pair


def attention_pair(x: Tensor, y: Tensor, heads: int = 8, temperature: float = 0.1) -> Tensor:
    """Attend from each side to the other, head by head; return the mean cosine with the result."""
    x, y = normalize(x, dim=1), normalize(y, dim=1)
    x_heads, y_heads = (v.unflatten(1, (heads, -1)).transpose(0, 1) for v in (x, y))
    logits = x_heads @ y_heads.mT * heads / temperature
    over_y = (logits.softmax(2) @ y_heads).transpose(0, 1).flatten(1)
    over_x = (logits.softmax(1).mT @ x_heads).transpose(0, 1).flatten(1)
    there = torch.cosine_similarity(x, over_y, dim=1).mean()
    return (there + torch.cosine_similarity(y, over_x, dim=1).mean()) / 2


def temporal_pair(gamma: float = 0.1) -> Callable[[Tensor, Tensor], Tensor]:
    """Return soft-DTW, one anti-diagonal at a time; paths are counted once per pair of lengths."""
    counts: dict[tuple[int, int], Tensor] = {}

    def pair(x: Tensor, y: Tensor) -> Tensor:
        t, length = torch.tensor([len(x)]), torch.tensor([len(y)])
        costs = (1 - normalize(x, dim=1) @ normalize(y, dim=1).T)[None]
        where = len(x), len(y)
        if where not in counts:
            counts[where] = soft_dtw(torch.zeros_like(costs), t, length, gamma).detach()
        total = soft_dtw(costs, t, length, gamma) - counts[where]
        return 1 - total[0] / (len(x) + len(y))

    return pair


def soft_dtw(costs: Tensor, t: Tensor, length: Tensor, gamma: float) -> Tensor:
    """Return soft-DTW (N,) of costs (N, T, L), each at its (t, l); diagonal steps count twice."""
    count, steps, others = costs.shape
    row = torch.arange(steps)
    far = costs.new_full((count, steps), FAR)
    before, last, table = far, far, []
    for k in range(steps + others - 1):
        column = k - row
        inside = (column >= 0) & (column < others)
        cost = costs[:, row, column.clamp(0, others - 1)]
        if k == 0:
            now = 2 * cost
        else:
            # The ways: one row up, the same row, and one row up but on the diagonal before.
            up, diagonal = (pad(v[:, :-1], (1, 0), value=FAR) for v in (last, before))
            ways = torch.stack((up + cost, last + cost, diagonal + 2 * cost))
            now = -gamma * torch.logsumexp(ways / -gamma, 0)
        now = torch.where(inside, now, far)
        before, last = last, now
        table.append(now)
    return torch.stack(table, 1)[torch.arange(count), t + length - 2, t - 1]


def local_whole(window: int) -> Callable[..., Tensor]:
    """Return MaxSim over windows, by one einsum."""

    def windows(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        t = lengths(x, mask)
        x = x.masked_fill(~real(x, mask)[..., None], 0.0)
        size = min(window, x.shape[1])
        # The sum has the direction of the mean of the real steps.
        means = avg_pool1d(x.mT, size, 1).mT if size > 1 else x
        counts = (t - size + 1).clamp(min=1)
        return normalize(means, dim=-1), torch.arange(means.shape[1]) < counts[:, None]

    def scores(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
        (u, u_real), (v, v_real) = windows(x, x_mask), windows(y, y_mask)
        cosines = torch.einsum("btd,cld->bctl", u, v)
        cosines = cosines.masked_fill(~(u_real[:, None, :, None] & v_real[None, :, None]), -2.0)
        over_y = cosines.amax(3).masked_fill(~u_real[:, None], 0.0).sum(2) / u_real.sum(1)[:, None]
        over_x = cosines.amax(2).masked_fill(~v_real[None], 0.0).sum(2) / v_real.sum(1)
        return (over_y + over_x) / 2

    return scores


def attention_whole(x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> Tensor:
    """Score all pairs at once, with weights (B, C, H, T, L) and attended steps (B, C, T, D)."""
    heads, temperature = 8, 0.1
    x_real, y_real = real(x, x_mask), real(y, y_mask)
    x, y = normalize(x, dim=2), normalize(y, dim=2)
    x_heads, y_heads = (v.unflatten(2, (heads, -1)) for v in (x, y))
    logits = torch.einsum("bthd,clhd->bchtl", x_heads, y_heads) * heads / temperature
    over_y = logits.masked_fill(~y_real[None, :, None, None], -1e9).softmax(4)
    over_x = logits.masked_fill(~x_real[:, None, None, :, None], -1e9).softmax(3)
    found_y = torch.einsum("bchtl,clhd->bcthd", over_y, y_heads).flatten(3)
    found_x = torch.einsum("bchtl,bthd->bclhd", over_x, x_heads).flatten(3)
    there = torch.cosine_similarity(x[:, None], found_y, dim=3) * x_real[:, None]
    back = torch.cosine_similarity(y[None], found_x, dim=3) * y_real
    return (there.sum(2) / x_real.sum(1)[:, None] + back.sum(2) / y_real.sum(1)) / 2


def all_costs(x: Tensor, y: Tensor) -> Tensor:
    """Return one minus the cosine of all steps, (B·C, T, L)."""
    cosines = torch.einsum("btd,cld->bctl", normalize(x, dim=2), normalize(y, dim=2))
    return 1 - cosines.flatten(0, 1)


def temporal_whole(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None, gamma: float = 0.1
) -> Tensor:
    """Score all pairs by soft-DTW at once, through autograd."""
    t = lengths(x, x_mask).repeat_interleave(len(y))
    length = lengths(y, y_mask).repeat(len(x))
    nothing = x.new_zeros(1, x.shape[1], y.shape[1]).expand(len(t), -1, -1)
    with torch.no_grad():
        count = soft_dtw(nothing, t, length, gamma)
    total = soft_dtw(all_costs(x, y), t, length, gamma) - count
    return (1 - total / (t + length)).view(len(x), len(y))
