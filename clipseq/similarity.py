"""The base class of similarities: their contract, and the code that fulfils most of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipseq.engine import Operator, Tree, check_tree, positive_integer, score_tiles, split_tree
from clipseq.engine.options import check_dense
from clipseq.engine.tiling import score_matched_tiles
from clipseq.engine.unit_vectors import unit
from clipseq.sequences import Alignment, Sequences, pack, unpack_pairs

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Prepared(NamedTuple):
    """One side of a comparison.

    Attributes:
        tree: result of `prepare_x` or `prepare_y`.
        occupied: (B,) True where the sequence has a real step.
        steps: T or L, before `prepare_x` or `prepare_y`.
    """

    tree: Tree
    occupied: Bool[Tensor, "B"]
    steps: int


class Similarity(nn.Module, ABC):
    """A similarity of two sequences, in cosine units: (B,T,D) x (C,L,D) -> (B,C).

    A plugin writes `score` and `align`, and also `prepare_x` and `prepare_y` if it compares
    anything other than L2-normalised steps. These methods never get padding before a real step, an
    empty sequence, NaN from padding, or half precision: `forward` has dealt with all of these.

    `forward` promises the following, and `clipseq.testing.check_similarity` checks it: scores lie
    in [-1, 1]; ``S[i, j]`` depends only on ``x[i]`` and ``y[j]``; neither the content nor the
    number nor the position of padded steps changes scores or gradients; a sequence without a real
    step scores -1 with every other and gets zero gradient; memory grows with the sequences and the
    scores, not with B·C·T·L, because pairs are scored in tiles (of at least one pair).

    Give every parameter at least one dimension (``nn.Parameter(torch.tensor([0.0]))`` for a single
    number): FSDP2 (`fully_shard`) does not shard parameters without one.

    Args:
        embed_dim: D, to apply a learned D x D projection to each side; it starts as the identity.
            None (the default) compares the steps unchanged.

    Attributes:
        default_weight: starting weight in ``combined``, unless its user chooses another.
        combined_options: options as a part of ``combined``, unless its user names the parts.
        composite: True for a similarity made of others; ``combined`` leaves it out.
        operators: operators of `clipseq.engine` that compute the scores, if there are any;
            ``clipseq doctor`` lists them, and the devices on which their kernels run.
        tile_elements: largest number of cells (b·c·T·L, the pairs of steps) in one tile of
            `score_all`. Memory grows with it. It has no effect if a similarity overrides
            `score_all`.
    """

    default_weight: ClassVar[float] = 0.1
    combined_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    composite: ClassVar[bool] = False
    operators: ClassVar[tuple[Operator, ...]] = ()
    tile_elements: int = 2**20
    _made_with: str = ""

    def __init__(self, *, embed_dim: int | None = None) -> None:
        super().__init__()
        size = positive_integer(embed_dim)
        if size is None and embed_dim is not None:
            raise ValueError(f"embed_dim must be a positive integer or None, got {embed_dim!r}")
        self.embed_dim = size
        self.x_projection = None if size is None else _identity_projection(size)
        self.y_projection = None if size is None else _identity_projection(size)

    def extra_repr(self) -> str:
        """Return the options it was created with, defaults included, except those that are None."""
        return self._made_with

    def project_x(self, x: Sequences) -> Sequences:
        """Apply the learned projection to x, or return x itself without `embed_dim`.

        `forward` calls this method.
        """
        return _projected(x, self.x_projection)

    def project_y(self, y: Sequences) -> Sequences:
        """Apply the learned projection to y, or return y itself without `embed_dim`."""
        return _projected(y, self.y_projection)

    def prepare_x(self, x: Sequences) -> Tree:
        """Return a tree of tensors (batch first) that `score` needs, computed once per sequence.

        By default, every step is L2-normalised. `x` may be the tensor that the user passed: do not
        write to it.
        """
        return Sequences(unit(x.values), x.mask)

    def prepare_y(self, y: Sequences) -> Tree:
        """Return the same for y. By default, this is `prepare_x`."""
        return self.prepare_x(y)

    def prepare_align_x(self, x: Sequences) -> Tree:
        """Return the tree that `align` needs, computed once per sequence; by default `prepare_x`.

        Override it if an alignment needs more than the scores do: the result of `prepare_x`
        travels between processes, so it should stay small.
        """
        return self.prepare_x(x)

    def prepare_align_y(self, y: Sequences) -> Tree:
        """Return the same for y. By default, this is `prepare_y`."""
        return self.prepare_y(y)

    @abstractmethod
    def score(self, x: Tree, y: Tree) -> Float[Tensor, "b c"]:
        """Score every pair of one tile, from the results of `prepare_x` and `prepare_y`."""

    @abstractmethod
    def align(self, x: Tree, y: Tree) -> Float[Tensor, "n t l"]:
        """Return how strongly each step of x matches each step of y, for matched pairs.

        Weights are never negative. The arguments are the results of `prepare_align_x` and
        `prepare_align_y`.
        """

    def degenerate(self, x_steps: int, y_steps: int) -> tuple[str, ...]:
        """Return the reasons why options make this similarity a trivial one for such lengths.

        `CLIP` warns of them once, so that nobody trains with a window longer than every sequence
        without knowing. By default there are none.

        Args:
            x_steps: number of steps of the longest x, at least 2.
            y_steps: number of steps of the longest y, at least 2.

        Returns:
            Reasons that follow the name of the similarity, such as ``"has a window of 16 steps, and
            no x has more than 10; set window=..."``.
        """
        return ()

    def score_all(self, x: Tree, y: Tree, steps: tuple[int, int]) -> Float[Tensor, "B C"]:
        """Score every pair of two prepared batches, tile by tile, and recompute tiles in backward.

        A plugin with its own kernels may override this; the results must stay the same.

        Args:
            x: result of `prepare_x`.
            y: result of `prepare_y`.
            steps: T and L, before `prepare_x` and `prepare_y`.
        """
        batch, others = _batch(x), _batch(y)
        pairs = self.tile_elements // (steps[0] * steps[1])
        return score_tiles(self.score, x, y, batch, others, pairs)

    def score_pairs(self, x: Tree, y: Tree) -> Float[Tensor, "n"]:
        """Score the matched pairs of one tile: the first x with the first y, and so on.

        By default, `score` is called on one pair at a time. A plugin may replace this by something
        faster; results must not change.
        """
        scores = []
        for one_x, one_y in zip(split_tree(x, 1), split_tree(y, 1), strict=True):
            score = self.score(one_x, one_y)
            self._check_scores(score, (1, 1), "score")
            scores.append(score.view(1))
        return torch.cat(scores)

    def score_all_pairs(self, x: Tree, y: Tree, steps: tuple[int, int]) -> Float[Tensor, "n"]:
        """Score matched pairs of two prepared batches, tile by tile, as `score_all` does.

        A plugin may replace this, too. Arguments are those of `score_all`.
        """
        pairs = self.tile_elements // (steps[0] * steps[1])
        return score_matched_tiles(self.score_pairs, x, y, _batch(x), pairs)

    @final  # type: ignore[misc]  # nn.Module declares it as an attribute
    def forward(
        self, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Float[Tensor, "B C"]:
        """Score every sequence of x with every sequence of y.

        Args:
            x: (B, T, D) floating point. Half precision, and everything under autocast, is
                computed in float32.
            y: (C, L, D), with the same D and device.
            x_mask: (B, T) bool, True at a real step, in any pattern. None: every step is real.
            y_mask: (C, L) bool, likewise.

        Returns:
            (B, C) scores in [-1, 1], float64 for float64 inputs, else float32.

        Raises:
            TypeError: an argument is not a tensor or not floating point, only one is float64, or a
                mask is not bool.
            ValueError: an argument has the wrong rank, no sequence or no step; or D, the shape of a
                mask, or the devices differ.
        """
        return self.compare(*self.prepare(x, y, x_mask, y_mask))

    @final
    def prepare(
        self, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> tuple[Prepared, Prepared]:
        """Do the first half of `forward`: everything that is done once per sequence.

        Arguments and errors are those of `forward`.
        """
        self._check(x, y, x_mask, y_mask)
        return self._prepare_side("x", x, x_mask), self._prepare_side("y", y, y_mask)

    @final
    def prepare_side(
        self, side: Literal["x", "y"], values: Tensor, mask: Tensor | None = None
    ) -> Prepared:
        """Prepare one side alone, for any number of calls of `compare` and `compare_pairs`.

        Args:
            side: "x" or "y". A similarity may treat the two differently.
            values: (B, T, D), as `forward` takes it for that side.
            mask: (B, T) bool, True at a real step. None: every step is real.

        Raises:
            TypeError: as `forward`, for that side.
            ValueError: as `forward`, for that side; or `side` is neither "x" nor "y".
        """
        if not isinstance(side, str) or side not in ("x", "y"):
            raise ValueError(f"side must be 'x' or 'y', got {side!r}")
        self._check_side(side, values, mask)
        return self._prepare_side(side, values, mask)

    def _prepare_side(self, side: str, values: Tensor, mask: Tensor | None) -> Prepared:
        with torch.autocast(values.device.type, enabled=False):
            packed, _, occupied = self._packed(values, mask, side)
            return Prepared(self._prepared(packed, side), occupied, packed.values.shape[1])

    @final
    def compare(self, x: Prepared, y: Prepared) -> Float[Tensor, "B C"]:
        """Do the second half of `forward`: score every pair of two prepared batches.

        They need not come from one call of `prepare`: the loss over many processes compares its
        own x with the y of others.
        """
        with torch.autocast(x.occupied.device.type, enabled=False):
            scores = self.score_all(x.tree, y.tree, (x.steps, y.steps))
            shape = x.occupied.shape[0], y.occupied.shape[0]
            self._check_scores(scores, shape, "score")
            scores = _within_bounds(scores)
            return scores.masked_fill(~(x.occupied[:, None] & y.occupied[None, :]), -1.0)

    @final
    def pairs(
        self, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Float[Tensor, "n"]:
        """Score the pairs (x[0], y[0]), (x[1], y[1]), ...: the diagonal of `forward`.

        Arguments and errors are those of `forward`, and x and y must have the same batch size n.
        Cost: n pairs, not n².

        Returns:
            (n,) scores in [-1, 1], float64 for float64 inputs, else float32.
        """
        self._check(x, y, x_mask, y_mask)
        _check_matched(len(x), len(y), "pairs takes")
        own, others = self._prepare_side("x", x, x_mask), self._prepare_side("y", y, y_mask)
        return self.compare_pairs(own, others)

    @final
    def compare_pairs(self, x: Prepared, y: Prepared) -> Float[Tensor, "n"]:
        """Do the second half of `pairs`: score the matched pairs of two prepared batches."""
        count = len(x.occupied)
        _check_matched(count, len(y.occupied), "compare_pairs takes")
        with torch.autocast(x.occupied.device.type, enabled=False):
            scores = self.score_all_pairs(x.tree, y.tree, (x.steps, y.steps))
            self._check_scores(scores, (count,), "score_pairs")
            return _within_bounds(scores).masked_fill(~(x.occupied & y.occupied), -1.0)

    @final
    def explain(
        self, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Alignment:
        """Align the pairs (x[0], y[0]), (x[1], y[1]), ..., with steps at the positions passed.

        Arguments and errors are those of `forward`, and x and y must have the same batch size n.
        A pair with an empty sequence scores -1, and its weights are zero. Cost: n pairs.
        """
        self._check(x, y, x_mask, y_mask)
        _check_matched(len(x), len(y), "explain takes")
        with torch.autocast(x.device.type, enabled=False):
            xs, x_order, x_occupied = self._packed(x, x_mask, "x")
            ys, y_order, y_occupied = self._packed(y, y_mask, "y")
            scores = self.compare_pairs(
                Prepared(self._prepared(xs, "x"), x_occupied, xs.values.shape[1]),
                Prepared(self._prepared(ys, "y"), y_occupied, ys.values.shape[1]),
            )
            weights = self.align(self.prepare_align_x(xs), self.prepare_align_y(ys))
        weights = unpack_pairs(weights.to(scores.dtype), x_order, y_order)
        x_real = _mask_or_all(x, x_mask)
        y_real = _mask_or_all(y, y_mask)
        mask = x_real[:, :, None] & y_real[:, None, :]
        return Alignment(scores, weights.masked_fill(~mask, 0.0), mask)

    def _packed(
        self, values: Tensor, mask: Tensor | None, side: str
    ) -> tuple[Sequences, Int[Tensor, "B T"], Bool[Tensor, "B"]]:
        """Return what `pack` returns, with the learned projection applied."""
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        packed, order, occupied = pack(values, _mask_or_all(values, mask))
        packed = self.project_x(packed) if side == "x" else self.project_y(packed)
        return packed, order, occupied

    def _prepared(self, packed: Sequences, side: str) -> Tree:
        tree = self.prepare_x(packed) if side == "x" else self.prepare_y(packed)
        check_tree(tree, packed.values.shape[0], f"{type(self).__name__}.prepare_{side}")
        return tree

    def _check(self, x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor | None) -> None:
        self._check_side("x", x, x_mask)
        self._check_side("y", y, y_mask)
        if x.shape[2] != y.shape[2]:
            raise ValueError(
                f"x and y must have the same number of features, got D={x.shape[2]} for x "
                f"{tuple(x.shape)} and D={y.shape[2]} for y {tuple(y.shape)}"
            )
        if x.device != y.device:
            raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
        if x.dtype != y.dtype and torch.float64 in (x.dtype, y.dtype):
            raise TypeError(
                f"x and y must both be float64 or neither, got {x.dtype} and {y.dtype}; "
                "convert one of them"
            )

    def _check_side(self, name: str, values: Tensor, mask: Tensor | None) -> None:
        steps = {"x": "T", "y": "L"}[name]
        shape = {"x": "(B, T, D)", "y": "(C, L, D)"}[name]
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a tensor {shape}, got {type(values).__name__}")
        if values.is_nested or values.layout is not torch.strided:
            kind = "nested" if values.is_nested else str(values.layout).removeprefix("torch.")
            raise TypeError(
                f"{name} must be a dense tensor {shape}, got a {kind} tensor; convert it with "
                + ("clipseq.pad" if values.is_nested else ".to_dense()")
            )
        if not values.is_meta and any(weight.is_meta for weight in self.parameters()):
            raise ValueError(
                f"{name} must be on the device of the similarity, meta, got {values.device}; "
                "create the similarity on a device that holds values"
            )
        if values.ndim != 3:
            # Two axes may be one sequence or a batch of pooled features: we cannot know.
            hint = (
                "; for one sequence add a batch axis with [None], for pooled features use "
                "ClipLoss or SigLipLoss"
            )
            raise ValueError(
                f"{name} must have the shape {shape}, got {tuple(values.shape)}"
                + (hint if values.ndim == 2 else "")
            )
        if values.dtype not in _FLOATS:
            raise TypeError(f"{name} must be floating point, got {values.dtype}")
        if 0 in values.shape:
            raise ValueError(
                f"{name} must have at least one sequence, one step and one feature, "
                f"got {tuple(values.shape)}; pass an empty sequence as one whose mask is False"
            )
        if self.embed_dim is not None and values.shape[2] != self.embed_dim:
            raise ValueError(
                f"{name} must have D={self.embed_dim} features, the similarity's embed_dim, got "
                f"D={values.shape[2]}"
            )
        if mask is None:
            return
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = type(mask).__name__
            if isinstance(mask, Tensor):
                kind = (
                    f"{mask.dtype}; convert zeros and ones with .bool(), and lengths with "
                    f"torch.arange({steps}) < lengths[:, None]"
                )
            raise TypeError(f"{name}_mask must be a bool tensor, True at a real step, got {kind}")
        check_dense(f"{name}_mask", mask, values=False)
        if mask.shape != values.shape[:2]:
            raise ValueError(
                f"{name}_mask must have the shape {tuple(values.shape[:2])} of {name}'s "
                f"first two axes, got {tuple(mask.shape)}"
            )
        if mask.device != values.device:
            raise ValueError(
                f"{name}_mask must be on the device of {name}, {values.device}, got {mask.device}"
            )

    def _check_scores(self, scores: Any, shape: tuple[int, ...], method: str) -> None:
        if not isinstance(scores, Tensor) or scores.shape != shape:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(
                f"{type(self).__name__}.{method} must return a tensor with one score for each "
                f"pair, {shape}, got {got}"
            )
        if scores.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{type(self).__name__}.{method} must return scores in float32, or in float64 for "
                f"float64 inputs, got {scores.dtype}"
            )


def _check_matched(count: int, others: int, who: str) -> None:
    if count != others:
        raise ValueError(
            f"x and y must have the same batch size, as {who} matched pairs, got {count} and "
            f"{others}"
        )


def _identity_projection(features: int) -> nn.Linear:
    # skip_init draws no random numbers: adding a similarity must not change later draws.
    linear = nn.utils.skip_init(nn.Linear, features, features, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def _projected(sequences: Sequences, projection: nn.Linear | None) -> Sequences:
    if projection is None:
        return sequences
    # The weight may be in half precision (model.bfloat16()). Without a bias, padding stays zero.
    weight = projection.weight.to(sequences.values.dtype)
    return Sequences(nn.functional.linear(sequences.values, weight), sequences.mask)


def _mask_or_all(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.new_ones(values.shape[:2], dtype=torch.bool) if mask is None else mask


def _within_bounds(scores: Tensor) -> Tensor:
    # Rounding may exceed ±1 by an ulp; clamp the value, but not the gradient.
    return scores + (scores.clamp(-1.0, 1.0) - scores).detach()


def _batch(tree: Tree) -> int:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return tree.shape[0]
