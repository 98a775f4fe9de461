"""``sinkhorn``: every step sends its share to the steps that it resembles most, in any order."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipseq import Sequences, Similarity, hookimpl


class SinkhornSimilarity(Similarity):
    r"""Entropic optimal transport between the steps, each with an equal share of its sequence.

    .. math::
        S = 1 - \min_P \Big( \langle P, 1 - s \rangle
            + \varepsilon\,\mathrm{KL}(P \,\|\, a \otimes b) \Big),
        \qquad P \mathbf 1 = a,\ P^\top \mathbf 1 = b

    with the cosines s (t, l) and uniform marginals a, b over the real steps. In ``local`` one step
    may match all others; here each step of x sends 1/t and each step of y receives 1/l, so no step
    is left out. Order does not count.

    It runs Sinkhorn's iterations (Cuturi, arXiv:1306.0895) in log space: from v = 0, `iterations`
    times

    .. math::
        u_i = -\log \sum_j b_j e^{s_{ij}/\varepsilon + v_j}, \qquad
        v_j = -\log \sum_i a_i e^{s_{ij}/\varepsilon + u_i},

    and S = -ε (a·u + b·v), the value of the dual. We differ from Cuturi's ``<P, 1 - s>`` at the
    regularised optimum by including the divergence relative to a ⊗ b (Feydy et al.,
    arXiv:1810.08278). A constant cosine then scores exactly itself at any lengths and any number of
    iterations, S never leaves the range of the cosines, and the gradient of S to the cosines
    converges to the plan itself. ε → 0 gives optimal transport, ε → ∞ the mean of all cosines. One
    iteration bounds S from above, and each further one tightens the bound.

    The gradient is exact after any number of iterations, not only in the limit, and is computed
    from the potentials alone. Cost: O(B·C·T·L·D) for the cosines, then 2 exponentials per cell in
    each iteration, forward and backward; the memory is that of one tile for any number of
    iterations.

    Args:
        epsilon: weight of the entropy, in units of cost, positive. A small value gives a sharp
            plan, which needs more iterations to fit the marginals.
        iterations: number of updates of both potentials.
        embed_dim: see `clipseq.Similarity`.

    Raises:
        ValueError: epsilon or iterations is not positive.
    """

    default_weight = 0.2
    tile_elements = 2**18  # every iteration reads the whole tile, which should stay in the cache

    def __init__(
        self, *, epsilon: float = 0.1, iterations: int = 20, embed_dim: int | None = None
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        if not 0 < epsilon < float("inf"):
            raise ValueError(f"epsilon must be positive, got {epsilon!r}")
        if type(iterations) is not int or iterations < 1:
            raise ValueError(f"iterations must be a positive integer, got {iterations!r}")
        self.epsilon = float(epsilon)
        self.iterations = iterations

    def score(self, x: Sequences, y: Sequences) -> Float[Tensor, "b c"]:
        rates = torch.einsum("btd,cld->bctl", x.values, y.values) / self.epsilon
        log_a, log_b = _log_shares(x)[:, None], _log_shares(y)
        return -self.epsilon * _Dual.apply(rates, log_a, log_b, self.iterations)

    def align(self, x: Sequences, y: Sequences) -> Float[Tensor, "n t l"]:
        """Return the transport plan: how much of step t of x goes to step l of y; it sums to 1.

        It is the plan after the last half iteration: its columns sum exactly to the marginals, and
        its rows as closely as the iterations allow.
        """
        rates = torch.bmm(x.values, y.values.mT) / self.epsilon
        log_a, log_b = _log_shares(x), _log_shares(y)
        us, vs = _potentials(rates, log_a, log_b, self.iterations)
        logits = rates + (us[-1] + log_a)[:, :, None] + (vs[-1] + log_b)[:, None, :]
        return logits.exp()


def _log_shares(sequences: Sequences) -> Float[Tensor, "b t"]:
    """Return the log of the uniform distribution over the real steps, -inf at padding."""
    values, mask = sequences
    logs = -sequences.lengths.to(values.dtype).log()
    return logs[:, None].expand(mask.shape).masked_fill(~mask, -torch.inf)


def _potentials(
    rates: Tensor, log_a: Tensor, log_b: Tensor, iterations: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return u (..., t) and v (..., l) of every iteration, from rates s/ε (..., t, l)."""
    us, vs = [], [rates.new_zeros(()).expand(rates.shape[:-2] + rates.shape[-1:])]
    for _ in range(iterations):
        us.append(-(rates + (vs[-1] + log_b).unsqueeze(-2)).logsumexp(-1))
        vs.append(-(rates + (us[-1] + log_a).unsqueeze(-1)).logsumexp(-2))
    return us, vs


class _Dual(torch.autograd.Function):
    """The dual a·u + b·v after the last iteration, differentiable with respect to the rates.

    Autograd would keep two tiles per iteration. Here u and v are enough: the terms of an
    iteration's sums are computed from them again, so that backward needs one tile at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, rates: Tensor, log_a: Tensor, log_b: Tensor, iterations: int
    ) -> Float[Tensor, "..."]:
        us, vs = _potentials(rates, log_a, log_b, iterations)
        ctx.save_for_backward(rates, log_a, log_b, torch.stack(us), torch.stack(vs))
        return (log_a.exp() * us[-1]).sum(-1) + (log_b.exp() * vs[-1]).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rates, log_a, log_b, us, vs = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        grad_u, grad_v = grad * log_a.exp(), grad * log_b.exp()
        grad_rates = torch.zeros_like(rates)
        for k in range(len(us) - 1, -1, -1):
            # v = -logsumexp has minus the softmax over t as its derivative, and v normalises it.
            to_v = (rates + (us[k] + log_a).unsqueeze(-1) + vs[k + 1].unsqueeze(-2)).exp_()
            to_v *= grad_v.unsqueeze(-2)
            grad_u = grad_u - to_v.sum(-1)
            to_u = (rates + us[k].unsqueeze(-1) + (vs[k] + log_b).unsqueeze(-2)).exp_()
            to_u *= grad_u.unsqueeze(-1)
            grad_v = -to_u.sum(-2)
            grad_rates -= to_v.add_(to_u)
            grad_u = torch.zeros_like(grad_u)
        return grad_rates, None, None, None


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"sinkhorn": SinkhornSimilarity}
