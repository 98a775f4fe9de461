"""Contrastive losses over the scores of all pairs of a batch, and the base class for new losses.

When torch.distributed is initialised, the batch is the global batch, made of the items of all
processes: each process passes the rows of its own x, and every process gets the same value.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipseq.distributed import Gather, World, score_rows
from clipseq.distributed.scores import GATHERS
from clipseq.distributed.world import count_processes
from clipseq.engine import single_number
from clipseq.engine.options import check_dense
from clipseq.engine.unit_vectors import unit
from clipseq.engine.workspace import loops_pay
from clipseq.errors import names_options
from clipseq.similarity import Prepared, Similarity

__all__ = ["ClipLoss", "PairLoss", "Positives", "SigLipLoss", "info_nce", "sigmoid_loss"]


class Positives(NamedTuple):
    """The pairs that belong together, for the rows of one process.

    B is the number of items of this process, N that of the global batch. In a single process
    B = N, and without groups `mask` is the diagonal. M is N plus the number of extra negatives of
    all processes, whose columns come last.

    Attributes:
        mask: True where row i and column j are positives of one another.
        per_column: number of positives of column j < N among the rows of all processes.
        world: the processes whose rows make up the batch. `World.sum` and `World.logsumexp`
            reduce over the rows of all of them.
        alone: True if items do not have groups, so that each is positive with its counterpart only.
    """

    mask: Bool[Tensor, "B M"]
    per_column: Int[Tensor, "N"]
    world: World
    alone: bool = False

    @classmethod
    def from_groups(
        cls, world: World, groups: Int[Tensor, "B"] | None, device: torch.device
    ) -> "Positives":
        """Return the pairs of items whose groups are equal; without groups, only x[i] and y[i].

        Args:
            world: the processes and their numbers of items.
            groups: (B,) or, with those of the extra negatives, more; None without groups.
            device: device of the result.
        """
        own = world.span(world.rank)
        items = own.stop - own.start
        if groups is None:
            mask = torch.eye(world.total, dtype=torch.bool, device=device)[own]
            per_column = torch.ones(world.total, dtype=torch.int64, device=device)
        else:
            # The dtype may differ between processes, and some dtypes cannot be sent.
            groups = groups.to(device, torch.int64)
            numbers = world.gather(groups[:items])
            _, where, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
            mask, per_column = groups[:items, None] == numbers, counts[where]
        if world.extras:
            mask = torch.cat([mask, _extra_positives(world, groups, items, device)], dim=1)
        return cls(mask, per_column, world, alone=groups is None)


def _extra_positives(
    world: World, groups: Int[Tensor, "C"] | None, items: int, device: torch.device
) -> Bool[Tensor, "B E"]:
    """Return the pairs of items and extra negatives whose groups are equal."""
    if groups is None:
        return torch.zeros(items, sum(world.extras), dtype=torch.bool, device=device)
    extra = World(world.extras, world.rank)
    known = torch.ones(world.extras[world.rank], dtype=torch.int64, device=device)
    own = groups[items:]
    if len(own) < len(known):  # the groups of this process's extra negatives are not given
        own, known = known, torch.zeros_like(known)
    return (groups[:items, None] == extra.gather(own)) & extra.gather(known).bool()


def info_nce(logits: Float[Tensor, "B M"], positives: Positives | None = None) -> Float[Tensor, ""]:
    r"""Return the mean of InfoNCE in both directions.

    .. math::
        L = \frac{1}{2N} \sum_i \Big( \mathrm{lse}_j z_{ij} - \frac{1}{|P_i|}\sum_{j \in P_i} z_{ij}
            \Big) + \text{the same over columns}

    With one positive per row (the diagonal, or `positives` = None) this is the loss of CLIP
    (arXiv:2103.00020). With several it is the supervised contrastive loss, L_out of
    arXiv:2004.11362: every positive of an item has the same share of the target.

    With several processes, the log-sum-exp of a column covers the rows of all of them. With extra
    negatives (M > N columns), that of a row covers all M columns; the mean over columns remains
    that of the first N, since the others match no row.
    """
    if positives is None:
        positives = _diagonal(logits)
    world, mask = positives.world, positives.mask
    if positives.alone and world.size == 1 and not world.extras:
        # The same, in fewer operations: at small sizes, starting them is what takes the time.
        either = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
        return either.sum() / (-2 * world.total)
    items = logits[:, : world.total] if world.extras else logits
    # Subtract before summing, so that a large offset common to all logits cancels.
    rows = (torch.logsumexp(logits, dim=1, keepdim=True) - logits) / mask.sum(1, keepdim=True)
    columns = (world.logsumexp(items) - items) / positives.per_column
    if world.extras:
        rest = rows[:, world.total :].masked_fill(~mask[:, world.total :], 0.0).sum()
        rows, mask = rows[:, : world.total], mask[:, : world.total]
    own = (rows + columns).masked_fill(~mask, 0.0).sum()
    return world.sum(own + rest if world.extras else own) / (2 * world.total)


def _diagonal(logits: Tensor) -> Positives:
    """Return the positives of the rows of one process without groups."""
    rows, columns = logits.shape
    return Positives.from_groups(World.alone(rows, columns - rows), None, logits.device)


def sigmoid_loss(
    logits: Float[Tensor, "B M"], positives: Positives | None = None
) -> Float[Tensor, ""]:
    r"""Return SigLIP's loss, ``-1/N · sum_ij log sigmoid(±z_ij)``, with + at the positives.

    The source is arXiv:2303.15343. Extra negatives are further columns j.
    """
    if positives is None:
        positives = _diagonal(logits)
    signed = torch.where(positives.mask, logits, -logits)
    own = -nn.functional.logsigmoid(signed).sum()
    return positives.world.sum(own) / positives.world.total


class _UpperBound(torch.autograd.Function):
    """``min(value, bound)`` with a gradient above the bound, unless descent would climb further.

    A plain clamp has no gradient above the bound, so a scale that once overshot it could never
    return.
    """

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(value: Tensor, bound: float) -> Tensor:
        return value.clamp(max=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        value, ctx.bound = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return grad.masked_fill((value > ctx.bound) & (grad < 0), 0.0), None


_TEMPERATURE = {"temperature": ": init_scale is 1 / temperature"}


class PairLoss(nn.Module, ABC):
    """A loss over all pairs of a batch, computed from scores in cosine units.

    Subclass it and write `loss`; this class does everything else. `forward` takes pooled features
    (B, D) and (C, D) and compares them by cosine, `from_scores` takes scores (B, C), and
    `SequenceLoss` takes sequences and any similarity. The first B of the y belong to the x; any
    others are extra negatives, such as captions with their actions in another order.

    >>> class HalfSquaredError(PairLoss):
    ...     def loss(self, scores, positives):
    ...         errors = self.scale * scores - positives.mask.to(scores.dtype)
    ...         return positives.world.sum(errors.square().sum() / 2) / positives.world.total

    All of these take `groups`, (B,) integers: items of one group (for example the same caption)
    are positives of one another. With None, each item belongs to its own counterpart alone. With
    extra negatives, groups may also be (C,): an extra y of an item's group is a positive of it.

    When torch.distributed is initialised, the batch consists of the items of all processes. Each
    process passes its own items, of which it may have any number, and must call the loss as often
    and in the same order as the others. Every process gets the same value. Gradients, including
    those of the inputs, are multiplied by the number of processes: once DDP or FSDP has averaged
    them over the processes, the gradients of parameters are exactly those of a single process with
    the whole batch.

    Args:
        init_scale: initial value of the learnable scale; 1/0.07 as in CLIP.
        max_scale: upper bound of the scale; 100 as in CLIP.
        gather: how the y of other processes arrive: "ring" (one block after the other) or "all"
            (at once). With None they do not arrive, and the loss covers only the items of this
            process.

    Attributes:
        gather: the argument `gather`.
        max_scale: the argument `max_scale`.
        starts_at_temperature: True (the default) if `CLIP` should pass its 1 / `temperature` as
            `init_scale`; False if the loss has its own initial scale, or no scale.
        takes_extra_negatives: True if `loss` is right for scores with more columns than items;
            False (the default) refuses extra negatives.
    """

    starts_at_temperature: ClassVar[bool] = True
    takes_extra_negatives: ClassVar[bool] = False

    @names_options(_TEMPERATURE)
    def __init__(
        self,
        *,
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        gather: Gather = "ring",
    ) -> None:
        super().__init__()
        _check_numbers(init_scale=init_scale, max_scale=max_scale)
        if not 0 < init_scale <= max_scale:
            raise ValueError(f"init_scale must lie in (0, max_scale={max_scale}], got {init_scale}")
        if not isinstance(gather, str | None) or gather not in GATHERS:
            raise ValueError(f"gather must be one of {GATHERS}, got {gather!r}")
        self.max_scale = float(max_scale)
        self.gather: Gather = gather
        # One number in one dimension: FSDP2 cannot shard a parameter without dimensions.
        self.log_scale = nn.Parameter(torch.tensor([math.log(init_scale)]))

    @abstractmethod
    def loss(self, scores: Float[Tensor, "B M"], positives: Positives) -> Float[Tensor, ""]:
        """Return the loss of the global batch, from the rows of this process.

        Args:
            scores: the scores of this process's x with the y of all processes, in cosine units;
                float32 or float64. Multiply them by `scale`. M = N unless there are extra
                negatives, whose columns come last; a loss gets them only if it declares
                `takes_extra_negatives`.
            positives: the pairs that belong together.

        Returns:
            One number, the same in every process: sum over the rows of this process, reduce with
            ``positives.world.sum``, and divide by ``positives.world.total``.
        """

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The learnable factor on the scores, at most `max_scale`; the inverse temperature."""
        value, bound = self.log_scale.squeeze(), math.log(self.max_scale)
        if loops_pay(self.log_scale) and float(self.log_scale.detach()) <= bound:
            return value.exp()  # a bound that does not bind, at a third of the cost
        return _UpperBound.apply(value, bound).exp()

    def metrics(self, batch: int) -> dict[str, Tensor]:
        """Return the values worth logging during training; extend it if you add parameters.

        Args:
            batch: number of items in the batch.
        """
        return {"scale": self.scale}

    @final  # type: ignore[misc]  # nn.Module declares it as an attribute
    def forward(self, x: Tensor, y: Tensor, groups: Tensor | None = None) -> Float[Tensor, ""]:
        """Return the loss of pooled features x (B, D) and y (C, D), where x[i] belongs to y[i]."""
        check_floats(x=x, y=y)
        if not x.shape[-1:].numel():
            raise ValueError(f"x must have at least one feature, got {tuple(x.shape)}")
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or len(y) < len(x):
            raise ValueError(
                f"pooled features must be x (B, D) and y (C, D) with C >= B, "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if x.device != y.device:
            raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
        with _without_autocast(x.device):
            dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
            # Both at once: for so few numbers, the number of operations is what counts.
            x, y = unit(torch.cat([x.to(dtype), y.to(dtype)])).split([len(x), len(y)])
            world = self._meet(x, y, groups, None)
            if world.size == 1 or self.gather is None:
                scores = x @ y.T
            else:
                scores = score_rows(
                    lambda a, b, _: a @ b.T, x, y, world.columns, gather=self.gather
                )
            return self._from_rows(scores, groups, world)

    @final
    def from_scores(self, scores: Tensor, groups: Tensor | None = None) -> Float[Tensor, ""]:
        """Return the loss of scores (B, C) in cosine units, with the true pairs on the diagonal.

        These scores are the whole batch, even when torch.distributed is initialised.
        """
        check_floats(scores=scores)
        if scores.ndim != 2 or scores.shape[0] > scores.shape[1] or len(scores) == 0:
            raise ValueError(f"scores must be (B, C) with C >= B >= 1, got {tuple(scores.shape)}")
        rows, columns = scores.shape
        self._check_call(rows, columns, groups)
        world = World.alone(rows, columns - rows)
        return self._from_rows(scores, groups, world)

    @final
    def from_sequences(
        self,
        similarity: Similarity,
        x: Tensor,
        y: Tensor,
        x_mask: Tensor | None,
        y_mask: Tensor | None,
        groups: Tensor | None,
    ) -> Float[Tensor, ""]:
        """Return the loss of sequences as `similarity` scores them; see `SequenceLoss`."""
        world = self._meet(x, y, groups, similarity)
        if world.size == 1 or self.gather is None:
            scores = similarity(x, y, x_mask, y_mask)
            _check_differentiable(scores, similarity, x, y)
            return self._from_rows(scores, groups, world)
        own, theirs = similarity.prepare(x, y, x_mask, y_mask)

        def compare(x: Any, y: Any, steps: int) -> Tensor:
            return similarity.compare(Prepared(x[0], x[1], own.steps), Prepared(y[0], y[1], steps))

        scores = score_rows(
            compare,
            own[:2],
            theirs[:2],
            world.columns,
            steps=theirs.steps,
            gather=self.gather,
            parameters=tuple(similarity.parameters()),
        )
        return self._from_rows(scores, groups, world)

    def _meet(
        self, x: Tensor, y: Tensor, groups: Tensor | None, similarity: nn.Module | None
    ) -> World:
        items, y_items = len(x), len(y)
        self._check_call(items, y_items, groups)
        extras = y_items - items
        if self.gather is None or count_processes() == 1:
            world = World.alone(items, extras)
        else:
            terms = {
                "the loss": type(self).__qualname__,
                "gather": self.gather,
                "max_scale": self.max_scale,
                "the number of features": x.shape[-1],
                "the dtype": x.dtype,
                "the similarity": "cosine" if similarity is None else _options_of(similarity),
            }
            world = World.meet(
                items, x.device, grouped=groups is not None, extras=extras, terms=terms
            )
        if world.total == 0:
            raise ValueError("the batch must have at least one item, got none")
        return world

    def _check_call(self, items: int, y_items: int, groups: Tensor | None) -> None:
        if y_items > items and not self.takes_extra_negatives:
            raise ValueError(
                f"y must have as many items as x for {type(self).__name__}, which takes no extra "
                f"negatives, got {y_items} y for {items} x; if its loss is right for more columns "
                "than items, declare takes_extra_negatives = True"
            )
        if groups is None:
            return
        if not isinstance(groups, Tensor):
            raise TypeError(f"groups must be a tensor of {items} integers, got {groups!r}")
        check_dense("groups", groups)
        if (
            groups.shape not in ((items,), (y_items,))
            or groups.is_floating_point()
            or groups.is_complex()
        ):
            or_more = f" or {y_items}" if y_items > items else ""
            raise ValueError(
                f"groups must be {items}{or_more} integers, "
                f"got {groups.dtype} {tuple(groups.shape)}"
            )

    def _from_rows(self, scores: Tensor, groups: Tensor | None, world: World) -> Tensor:
        with _without_autocast(scores.device):
            scores = world.put_extras_last(scores)
            if scores.dtype != torch.float64:
                scores = scores.float()
            value = self.loss(scores, Positives.from_groups(world, groups, scores.device))
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{type(self).__name__}.loss must return one number as a tensor of shape (), "
                f"got {got}"
            )
        return value


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast; where there is none already, it costs nothing."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _options_of(similarity: nn.Module) -> str:
    """Describe a similarity and its parts, without what differs between devices."""
    return " of ".join(
        f"{type(part).__qualname__}({part.extra_repr()})"
        for part in similarity.modules()
        if isinstance(part, Similarity)
    )


def _check_differentiable(scores: Tensor, similarity: nn.Module, x: Tensor, y: Tensor) -> None:
    """Refuse scores that would silently train nothing."""
    if scores.requires_grad or not torch.is_grad_enabled():
        return
    if x.requires_grad or y.requires_grad:
        raise TypeError(
            f"the scores of {type(similarity).__name__} must have a gradient to x and y for a "
            "loss, got scores without one; compute them with torch, without detach(), .data or "
            "no_grad()"
        )


def check_floats(**inputs: object) -> None:
    """Raise TypeError unless every input is a floating point tensor; the error names the input."""
    for name, values in inputs.items():
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
        if not values.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {values.dtype}")
        check_dense(name, values)


def _check_numbers(**options: object) -> None:
    for name, value in options.items():
        number = single_number(value)
        if number is not None and math.isfinite(number):
            continue
        if isinstance(value, float) or number is not None:
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        raise TypeError(f"{name} must be a number, got {value!r}")


class ClipLoss(PairLoss):
    """InfoNCE in both directions over scaled cosines (`info_nce`; CLIP, arXiv:2103.00020).

    It differs from open_clip's ``ClipLoss`` in that it normalises its inputs, owns its scale, and
    accepts positives beyond the diagonal.

    Args:
        init_scale: initial value of the learnable scale; 1/0.07 as in CLIP.
        max_scale: upper bound of the scale; 100 as in CLIP.
        gather: how the items of other processes arrive; see `PairLoss`.
    """

    takes_extra_negatives = True

    def loss(self, scores: Float[Tensor, "B M"], positives: Positives) -> Float[Tensor, ""]:
        """Return `info_nce` of the scaled scores."""
        return info_nce(self.scale * scores, positives)


class SigLipLoss(PairLoss):
    """A sigmoid loss over every pair on its own (`sigmoid_loss`; SigLIP, arXiv:2303.15343).

    Args:
        init_scale: initial value of the learnable scale; 10 as in SigLIP.
        init_bias: initial value of the learnable bias; -10 as in SigLIP. With ``"batch_size"`` the
            bias is a learnable offset, initially 0, minus log(M - 1): the log-odds of a positive
            among the M candidates of a row, so that a small batch does not start from a bias meant
            for 32k.
        max_scale: upper bound of the scale.
        gather: how the items of other processes arrive; see `PairLoss`.
    """

    starts_at_temperature = False
    takes_extra_negatives = True

    @names_options(_TEMPERATURE)
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
        """Return the bias on the logits for a batch size of `batch`."""
        prior = -math.log(max(batch - 1, 1)) if self.bias_from_batch else 0.0
        return self.bias_offset.squeeze() + prior

    def metrics(self, batch: int) -> dict[str, Tensor]:
        """Return the scale and the bias."""
        return {**super().metrics(batch), "bias": self.bias(batch)}

    def loss(self, scores: Float[Tensor, "B M"], positives: Positives) -> Float[Tensor, ""]:
        """Return `sigmoid_loss` of the scaled scores plus the bias."""
        bias = self.bias(positives.mask.shape[1])
        return sigmoid_loss(self.scale * scores + bias, positives)


BUILT_IN: Mapping[str, type[PairLoss]] = MappingProxyType({"clip": ClipLoss, "siglip": SigLipLoss})
"""The losses that clipseq itself offers by name."""
