"""Contrastive losses, for pooled features and for whatever a similarity makes of two sequences.

With torch.distributed initialised they are the loss of the whole batch, the items of all processes
together: each process has the rows of its own x, and the same value comes out in all of them.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, SupportsFloat

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipseq.distributed import Gather, World, scores_of_all
from clipseq.distributed.scores import GATHERS
from clipseq.distributed.sharding import GathersWeights, gathers_weights
from clipseq.engine.unit_vectors import unit
from clipseq.errors import nearest
from clipseq.similarity import Prepared, Similarity


class Positives(NamedTuple):
    """Which pairs belong together, for the rows of one process.

    Attributes:
        mask: True where row i and column j do.
        per_column: rows that belong to column j, in all processes.
        world: whose rows they are.
    """

    mask: Bool[Tensor, "B N"]
    per_column: Int[Tensor, "N"]
    world: World

    @classmethod
    def of(cls, world: World, groups: Int[Tensor, "B"] | None, device: torch.device) -> "Positives":
        """Those of one group; without groups, x[i] belongs to y[i] alone."""
        own = world.span(world.rank)
        if groups is None:
            numbers = torch.arange(world.total, device=device)
            mask = numbers[own, None] == numbers
            return cls(mask, torch.ones_like(numbers), world)
        # The processes' types may differ, and not all of them travel.
        groups = groups.to(device, torch.int64)
        numbers = world.gathered(groups)
        _, where, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
        return cls(groups[:, None] == numbers, counts[where], world)


def info_nce(logits: Float[Tensor, "B N"], positives: Positives | None = None) -> Float[Tensor, ""]:
    r"""InfoNCE in both directions, the mean of the two.

    .. math::
        L = \frac{1}{2N} \sum_i \Big( \mathrm{lse}_j z_{ij} - \frac{1}{|P_i|}\sum_{j \in P_i} z_{ij}
            \Big) + \text{the same over columns}

    With one positive a row (the diagonal, or None) this is the loss of CLIP (arXiv:2103.00020);
    with several it is the supervised contrastive loss, L_out of arXiv:2004.11362: each positive
    of an item has the same share of the target.

    Over many processes the log-sum-exp of a column is a reduction over their rows.
    """
    if positives is None:
        positives = Positives.of(World.alone(len(logits)), None, logits.device)
    # The differences are taken before the sums, so that a large common offset cancels.
    rows = torch.logsumexp(logits, dim=1, keepdim=True) - logits
    columns = positives.world.logsumexp(logits) - logits
    shares = rows / positives.mask.sum(1, keepdim=True) + columns / positives.per_column
    own = shares.masked_fill(~positives.mask, 0.0).sum()
    return positives.world.summed(own) / (2 * positives.world.total)


def sigmoid_loss(
    logits: Float[Tensor, "B N"], positives: Positives | None = None
) -> Float[Tensor, ""]:
    r"""SigLIP's loss (arXiv:2303.15343), ``-1/N · sum_ij log sigmoid(±z_ij)``, + at positives."""
    if positives is None:
        positives = Positives.of(World.alone(len(logits)), None, logits.device)
    signed = torch.where(positives.mask, logits, -logits)
    own = -nn.functional.logsigmoid(signed).sum()
    return positives.world.summed(own) / positives.world.total


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

    With torch.distributed initialised the batch is that of all processes, each of which passes
    its own items, as many as it has, and must call the loss as often and in the same order as the
    others. The value is the same in all. Gradients, of inputs too, carry a factor of the number of
    processes: averaged over them, as DDP and FSDP do, those of parameters are exactly the ones of
    a single process with the whole batch.

    Attributes:
        gather: how the others' y arrive, "ring" (one block after the other), "all" (at once), or
            None: not at all, and the loss is that of this process's own items.
    """

    def __init__(self, *, init_scale: float, max_scale: float, gather: Gather = "ring") -> None:
        super().__init__()
        _check_numbers(init_scale=init_scale, max_scale=max_scale)
        if not 0 < init_scale <= max_scale:
            raise ValueError(f"init_scale must lie in (0, max_scale={max_scale}], got {init_scale}")
        if gather not in GATHERS:
            raise ValueError(f"gather must be one of {GATHERS}, got {gather!r}")
        self.max_scale = float(max_scale)
        self.gather: Gather = gather
        # One number, in one dimension: FSDP2 shards no parameter that has none.
        self.log_scale = nn.Parameter(torch.tensor([math.log(init_scale)]))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The learnable factor on cosines, at most `max_scale`; its inverse is the temperature."""
        return _UpperBound.apply(self.log_scale.squeeze(), math.log(self.max_scale)).exp()

    def forward(self, x: Tensor, y: Tensor, groups: Tensor | None = None) -> Float[Tensor, ""]:
        """The loss of pooled features x (B, D) and y (B, D); x[i] belongs to y[i]."""
        _check_floats(x=x, y=y)
        if x.ndim != 2 or x.shape != y.shape:
            raise ValueError(
                f"pooled features must be two tensors (B, D) of one shape, "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
            x, y = unit(x.to(dtype)), unit(y.to(dtype))
            world = self._world(len(x), groups, x.device)
            if world.size == 1 or self.gather is None:
                scores = x @ y.T
            else:
                scores = scores_of_all(lambda a, b, _: a @ b.T, x, y, world, gather=self.gather)
            return self._from_rows(scores, groups, world)

    def from_scores(self, scores: Tensor, groups: Tensor | None = None) -> Float[Tensor, ""]:
        """The loss of scores (B, B) in cosine units; the diagonal holds the true pairs.

        Of these scores alone, whatever other processes do.
        """
        _check_floats(scores=scores)
        if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
            raise ValueError(f"scores must be (B, B) with B >= 1, got {tuple(scores.shape)}")
        self._check_groups(groups, len(scores))
        return self._from_rows(scores, groups, World.alone(len(scores)))

    def of_sequences(
        self,
        similarity: Similarity,
        x: Tensor,
        y: Tensor,
        x_mask: Tensor | None,
        y_mask: Tensor | None,
        groups: Tensor | None,
    ) -> Float[Tensor, ""]:
        """The loss of sequences as `similarity` scores them; see `SequenceLoss`."""
        world = self._world(len(x), groups, x.device)
        if world.size == 1 or self.gather is None:
            return self._from_rows(similarity(x, y, x_mask, y_mask), groups, world)
        own, theirs = similarity.prepare(x, y, x_mask, y_mask)

        def compare(x: Any, y: Any, steps: int) -> Tensor:
            return similarity.compare(Prepared(x[0], x[1], own.steps), Prepared(y[0], y[1], steps))

        scores = scores_of_all(
            compare,
            own[:2],
            theirs[:2],
            world,
            steps=theirs.steps,
            gather=self.gather,
            parameters=tuple(similarity.parameters()),
        )
        return self._from_rows(scores, groups, world)

    def _world(self, items: int, groups: Tensor | None, device: torch.device) -> World:
        self._check_groups(groups, items)
        if self.gather is None:
            world = World.alone(items)
        else:
            world = World.meet(items, device, grouped=groups is not None)
        if world.total == 0:
            raise ValueError("a batch needs at least one item, got none")
        return world

    @staticmethod
    def _check_groups(groups: Tensor | None, items: int) -> None:
        if groups is None:
            return
        if not isinstance(groups, Tensor):
            raise TypeError(f"groups must be a tensor of {items} integers, got {groups!r}")
        if groups.shape != (items,) or groups.is_floating_point():
            raise ValueError(
                f"groups must be {items} integers, got {groups.dtype} {tuple(groups.shape)}"
            )

    def _from_rows(self, scores: Tensor, groups: Tensor | None, world: World) -> Tensor:
        with torch.autocast(scores.device.type, enabled=False):
            if scores.dtype != torch.float64:
                scores = scores.float()
            return self._loss(scores, Positives.of(world, groups, scores.device))

    def _loss(self, scores: Tensor, positives: Positives) -> Tensor:
        raise NotImplementedError


def _check_floats(**inputs: object) -> None:
    for name, values in inputs.items():
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
        if not values.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {values.dtype}")


def _check_numbers(**options: object) -> None:
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, SupportsFloat):
            raise TypeError(f"{name} must be a number, got {value!r}")


class ClipLoss(PairLoss):
    """InfoNCE in both directions over scaled cosines (`info_nce`; CLIP, arXiv:2103.00020).

    Differs from open_clip's ``ClipLoss`` in that it normalises, owns its scale, and takes
    positives beyond the diagonal.

    Args:
        init_scale: where the learnable scale starts; 1/0.07 as in CLIP.
        max_scale: its upper bound; 100 as in CLIP.
        gather: how other processes' items arrive; see `PairLoss`.
    """

    def __init__(
        self,
        *,
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        gather: Gather = "ring",
    ) -> None:
        super().__init__(init_scale=init_scale, max_scale=max_scale, gather=gather)

    def _loss(self, scores: Tensor, positives: Positives) -> Tensor:
        return info_nce(self.scale * scores, positives)


class SigLipLoss(PairLoss):
    """A sigmoid loss over every pair on its own (`sigmoid_loss`; SigLIP, arXiv:2303.15343).

    Args:
        init_scale: where the learnable scale starts; 10 as in SigLIP.
        init_bias: where the learnable bias starts; -10 as in SigLIP. ``"batch_size"``: the bias
            is a learnable offset, which starts at 0, minus log(B - 1): the log-odds of a positive
            among B items, so that a small batch does not start from a bias meant for 32k.
        max_scale: upper bound of the scale.
        gather: how other processes' items arrive; see `PairLoss`.
    """

    def __init__(
        self,
        *,
        init_scale: float = 10.0,
        init_bias: float | Literal["batch_size"] = -10.0,
        max_scale: float = 100.0,
        gather: Gather = "ring",
    ) -> None:
        super().__init__(init_scale=init_scale, max_scale=max_scale, gather=gather)
        if isinstance(init_bias, str) and init_bias != "batch_size":
            raise ValueError(f"init_bias must be a number or 'batch_size', got {init_bias!r}")
        if not isinstance(init_bias, str):
            _check_numbers(init_bias=init_bias)
        self.bias_from_batch = init_bias == "batch_size"
        start = 0.0 if isinstance(init_bias, str) else float(init_bias)
        self.bias_offset = nn.Parameter(torch.tensor([start]))

    def bias(self, batch: int) -> Float[Tensor, ""]:
        """The bias on the logits of a batch of that size."""
        prior = -math.log(max(batch - 1, 1)) if self.bias_from_batch else 0.0
        return self.bias_offset.squeeze() + prior

    def _loss(self, scores: Tensor, positives: Positives) -> Tensor:
        bias = self.bias(positives.world.total)
        return sigmoid_loss(self.scale * scores + bias, positives)


_KINDS: Mapping[str, type[PairLoss]] = {"clip": ClipLoss, "siglip": SigLipLoss}


def _check_options(kind: str, options: Mapping[str, Any]) -> None:
    known = {name: list(inspect.signature(loss).parameters) for name, loss in _KINDS.items()}
    for option in options:
        if option in known[kind]:
            continue
        others = [other for other, its_own in known.items() if option in its_own]
        if others:
            hint = f", which is one of kind={others[0]!r}"
        elif option == "temperature":
            hint = ": init_scale is 1 / temperature"
        else:
            hint = nearest(option, known[kind])
        raise TypeError(
            f"the loss of kind={kind!r} has no option {option!r}{hint}; "
            f"options: {', '.join(known[kind])}"
        )


class SequenceLoss(GathersWeights):
    """A contrastive loss over the scores of any similarity of sequences.

    Args:
        similarity_fn: a `Similarity`; scores in cosine units.
        kind: "clip" (`ClipLoss`) or "siglip" (`SigLipLoss`).
        loss_options: options of that loss, e.g. ``init_scale=20.0`` or ``gather="all"``.

    Attributes:
        similarity_fn: the similarity.
        pair_loss: the loss over its scores, which owns the scale.

    Raises:
        TypeError: `similarity_fn` is no similarity; an option that this kind does not have (the
            message suggests the nearest); an option of the wrong type.
        ValueError: another kind; an option out of its range.
    """

    def __init__(
        self,
        similarity_fn: Similarity,
        kind: Literal["clip", "siglip"] = "clip",
        **loss_options: Any,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind must be 'clip' or 'siglip', got {kind!r}")
        # By its methods: what torch.compile makes of a similarity is none by its class.
        methods = [getattr(similarity_fn, name, None) for name in ("prepare", "compare")]
        if not isinstance(similarity_fn, nn.Module) or not all(map(callable, methods)):
            raise TypeError(
                f"similarity_fn must be a Similarity, got {similarity_fn!r}; "
                "get_similarity(name) makes one"
            )
        _check_options(kind, loss_options)
        self.similarity_fn = similarity_fn
        self.pair_loss: PairLoss = _KINDS[kind](**loss_options)

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

        Masks are those of `Similarity`, groups those of `PairLoss`, and so is what many processes
        do together: each scores its own x with the y of all, T and L may differ between them, and
        what travels is what the similarity's `prepare_y` made.
        """
        _check_floats(x=x, y=y)
        if len(x) != len(y):
            raise ValueError(f"x[i] belongs to y[i]: got batches of {len(x)} and {len(y)}")
        return self.pair_loss.of_sequences(self.similarity_fn, x, y, x_mask, y_mask, groups)
