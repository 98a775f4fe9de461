"""Contrastive losses, for pooled features and for whatever a similarity makes of two sequences."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipseq.cosine import unit
from clipseq.sharding import GathersWeights, gathers_weights
from clipseq.similarity import Similarity


def positive_pairs(x_groups: Int[Tensor, "B"], y_groups: Int[Tensor, "C"]) -> Bool[Tensor, "B C"]:
    """True where x[i] and y[j] belong together: their groups are equal."""
    return x_groups[:, None] == y_groups[None, :]


def info_nce(
    logits: Float[Tensor, "B B"], positives: Bool[Tensor, "B B"] | None = None
) -> Float[Tensor, ""]:
    r"""InfoNCE in both directions, the mean of the two.

    .. math::
        L = \frac{1}{2B} \sum_i \Big( \mathrm{lse}_j z_{ij} - \frac{1}{|P_i|}\sum_{j \in P_i} z_{ij}
            \Big) + \text{the same over columns}

    With one positive a row (the diagonal, or None) this is the loss of CLIP (arXiv:2103.00020);
    with several it is the supervised contrastive loss, L_out of arXiv:2004.11362: each positive
    of an item has the same share of the target.
    """
    if positives is None:
        positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    rows = _cross_entropy(logits, positives)
    columns = _cross_entropy(logits.T, positives.T)
    return (rows + columns) / 2


def _cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    # The difference is taken before the mean, so that a large common offset cancels.
    gaps = torch.logsumexp(logits, dim=1, keepdim=True) - logits
    share = gaps.masked_fill(~positives, 0.0).sum(1) / positives.sum(1)
    return share.mean()


def sigmoid_loss(logits: Float[Tensor, "B C"], positives: Bool[Tensor, "B C"]) -> Float[Tensor, ""]:
    r"""SigLIP's loss (arXiv:2303.15343), ``-1/B · sum_ij log sigmoid(±z_ij)``, + at positives."""
    signed = torch.where(positives, logits, -logits)
    return -nn.functional.logsigmoid(signed).sum() / len(logits)


class _UpperBound(torch.autograd.Function):
    """``min(value, bound)`` whose gradient vanishes above the bound only where descent would climb.

    A plain clamp has no gradient there at all: a scale that has stepped over would stay for good.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bound = bound
        return value.clamp(max=bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return grad.masked_fill((value > ctx.bound) & (grad < 0), 0.0), None


class PairLoss(nn.Module):
    """What `ClipLoss` and `SigLipLoss` share: a loss over all pairs of a batch, from cosines.

    Called with pooled features (B, D) and (B, D), it compares them by cosine; `from_scores`
    takes any (B, B) of scores in cosine units.

    Args of a call:
        groups: (B,) integers; items of one group (the same caption, say) are positives of one
            another. None: each item belongs to its own counterpart alone.
    """

    def __init__(self, *, init_scale: float, max_scale: float) -> None:
        super().__init__()
        if not 0 < init_scale <= max_scale:
            raise ValueError(f"init_scale must lie in (0, max_scale={max_scale}], got {init_scale}")
        self.max_scale = float(max_scale)
        # One number, in one dimension: FSDP2 shards no parameter that has none.
        self.log_scale = nn.Parameter(torch.tensor([math.log(init_scale)]))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The learnable factor on cosines, at most `max_scale`; its inverse is the temperature."""
        return _UpperBound.apply(self.log_scale.squeeze(), math.log(self.max_scale)).exp()

    def forward(self, x: Tensor, y: Tensor, groups: Tensor | None = None) -> Float[Tensor, ""]:
        """The loss of pooled features x (B, D) and y (B, D); x[i] belongs to y[i]."""
        if x.ndim != 2 or x.shape != y.shape:
            raise ValueError(
                f"pooled features must be two tensors (B, D) of one shape, "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
            return self.from_scores(unit(x.to(dtype)) @ unit(y.to(dtype)).T, groups)

    def from_scores(self, scores: Tensor, groups: Tensor | None = None) -> Float[Tensor, ""]:
        """The loss of scores (B, B) in cosine units; the diagonal holds the true pairs."""
        batch = len(scores)
        if scores.ndim != 2 or scores.shape[1] != batch or batch == 0:
            raise ValueError(f"scores must be (B, B) with B >= 1, got {tuple(scores.shape)}")
        if groups is None:
            positives = torch.eye(batch, dtype=torch.bool, device=scores.device)
        elif groups.shape != (batch,) or groups.is_floating_point():
            raise ValueError(
                f"groups must be {batch} integers, got {groups.dtype} {tuple(groups.shape)}"
            )
        else:
            groups = groups.to(scores.device)
            positives = positive_pairs(groups, groups)
        with torch.autocast(scores.device.type, enabled=False):
            if scores.dtype != torch.float64:
                scores = scores.float()
            return self._loss(scores, positives)

    def _loss(self, scores: Tensor, positives: Tensor) -> Tensor:
        raise NotImplementedError


class ClipLoss(PairLoss):
    """InfoNCE in both directions over scaled cosines (`info_nce`; CLIP, arXiv:2103.00020).

    Differs from open_clip's ``ClipLoss`` in that it normalises, owns its scale, and takes
    positives beyond the diagonal.

    Args:
        init_scale: where the learnable scale starts; 1/0.07 as in CLIP.
        max_scale: its upper bound; 100 as in CLIP.
    """

    def __init__(self, *, init_scale: float = 1 / 0.07, max_scale: float = 100.0) -> None:
        super().__init__(init_scale=init_scale, max_scale=max_scale)

    def _loss(self, scores: Tensor, positives: Tensor) -> Tensor:
        return info_nce(self.scale * scores, positives)


class SigLipLoss(PairLoss):
    """A sigmoid loss over every pair on its own (`sigmoid_loss`; SigLIP, arXiv:2303.15343).

    Args:
        init_scale: where the learnable scale starts; 10 as in SigLIP.
        init_bias: where the learnable bias starts; -10 as in SigLIP. ``"batch_size"``: the bias
            is a learnable offset, which starts at 0, minus log(B - 1): the log-odds of a positive
            among B items, so that a small batch does not start from a bias meant for 32k.
        max_scale: upper bound of the scale.
    """

    def __init__(
        self,
        *,
        init_scale: float = 10.0,
        init_bias: float | Literal["batch_size"] = -10.0,
        max_scale: float = 100.0,
    ) -> None:
        super().__init__(init_scale=init_scale, max_scale=max_scale)
        if isinstance(init_bias, str) and init_bias != "batch_size":
            raise ValueError(f"init_bias must be a number or 'batch_size', got {init_bias!r}")
        self.bias_from_batch = init_bias == "batch_size"
        start = 0.0 if isinstance(init_bias, str) else float(init_bias)
        self.bias_offset = nn.Parameter(torch.tensor([start]))

    def bias(self, batch: int) -> Float[Tensor, ""]:
        """The bias on the logits of a batch of that size."""
        prior = -math.log(max(batch - 1, 1)) if self.bias_from_batch else 0.0
        return self.bias_offset.squeeze() + prior

    def _loss(self, scores: Tensor, positives: Tensor) -> Tensor:
        return sigmoid_loss(self.scale * scores + self.bias(len(scores)), positives)


class SequenceLoss(GathersWeights):
    """A contrastive loss over the scores of any similarity of sequences.

    Args:
        similarity_fn: a `Similarity`; scores in cosine units.
        kind: "clip" (`ClipLoss`) or "siglip" (`SigLipLoss`).
        loss_options: options of that loss, e.g. ``init_scale=20.0``.

    Attributes:
        similarity_fn: the similarity.
        pair_loss: the loss over its scores, which owns the scale.
    """

    def __init__(
        self,
        similarity_fn: Similarity,
        kind: Literal["clip", "siglip"] = "clip",
        **loss_options: Any,
    ) -> None:
        super().__init__()
        kinds = {"clip": ClipLoss, "siglip": SigLipLoss}
        if kind not in kinds:
            raise ValueError(f"kind must be 'clip' or 'siglip', got {kind!r}")
        self.similarity_fn = similarity_fn
        self.pair_loss: PairLoss = kinds[kind](**loss_options)

    @gathers_weights
    def scores(
        self, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Float[Tensor, "B C"]:
        """`similarity_fn` of every x and every y, also where FSDP2 has sharded this loss."""
        return self.similarity_fn(x, y, x_mask, y_mask)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_mask: Tensor | None = None,
        y_mask: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of x (B, T, D) and y (B, L, D), where x[i] belongs to y[i].

        Masks are those of `Similarity`, groups those of `PairLoss`.
        """
        if len(x) != len(y):
            raise ValueError(f"x[i] belongs to y[i]: got batches of {len(x)} and {len(y)}")
        return self.pair_loss.from_scores(self.similarity_fn(x, y, x_mask, y_mask), groups)
