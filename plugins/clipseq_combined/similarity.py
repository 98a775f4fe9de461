"""A learnable weighted mean of other similarities."""

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipseq import (
    PluginError,
    Sequences,
    Similarity,
    SimilarityInfo,
    available_similarities,
    get_similarity,
)

_PREFIX = "part_"  # nn.ModuleDict refuses names such as "type"
_ABSENT = "is not installed, or left out by CLIPSEQ_DISABLE"


class CombinedSimilarity(Similarity):
    r"""A weighted mean of similarities, its weights learnt: ``S = sum_k w_k S_k / sum_k w_k``.

    The recommended one. Each part sees the same sequences, after this similarity's own
    projection if it has one. Weights stay positive: their logarithms are what is learnt.
    Cost: that of the parts.

    Args:
        parts: which similarities, name -> options. None: every registered one that is not
            composite, third parties' included, with default options.
        weights: name -> starting weight, positive and finite; a part not named has its
            `default_weight`.
        embed_dim: see `clipseq.Similarity`.

    Attributes:
        weights: name -> present weight.
        parts: name -> similarity.

    Raises:
        UnknownSimilarityError: a part is not registered.
        PluginError: `parts` is None, and a registered similarity cannot be made, or a name is
            offered twice; what one that is named in `parts` raises is its own, with a note that
            names it.
        TypeError: a weight that is not a number.
        ValueError: no parts, a weight that is not positive and finite, a weight for something else.
    """

    composite = True

    def __init__(
        self,
        *,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        weights: Mapping[str, float] | None = None,
        embed_dim: int | None = None,
    ) -> None:
        super().__init__(embed_dim=embed_dim)
        asked = parts is not None
        if parts is None:
            infos = available_similarities()
            parts = {name: {} for name, info in infos.items() if not info.composite}
        elif not isinstance(parts, Mapping) or not all(
            isinstance(options, Mapping) for options in parts.values()
        ):
            raise TypeError(f"parts must map names to options, such as {{}}, got {parts!r}")
        if not parts:
            raise ValueError("combined needs at least one part")
        if weights is not None and not isinstance(weights, Mapping):
            raise TypeError(f"weights must map names to numbers, got {weights!r}")
        starts = dict(weights or {})
        self._parts = nn.ModuleDict()
        self.log_weights = nn.ParameterDict()
        for name, options in parts.items():
            part = self._parts[_PREFIX + name] = _made(name, options, asked=asked)
            weight = _checked(name, starts.pop(name, part.default_weight))
            # In one dimension: FSDP2 shards no parameter that has none.
            self.log_weights[_PREFIX + name] = nn.Parameter(torch.tensor([math.log(weight)]))
        if starts:
            raise ValueError(
                f"weights for {', '.join(starts)}, but the parts are {', '.join(parts)}"
            )

    @property
    def parts(self) -> dict[str, Similarity]:
        """The parts by name."""
        return {
            name.removeprefix(_PREFIX): cast(Similarity, part) for name, part in self._parts.items()
        }

    @property
    def weights(self) -> dict[str, float]:
        """The present weights by name; S divides by their sum."""
        return {
            name.removeprefix(_PREFIX): float(value.detach().exp())
            for name, value in self.log_weights.items()
        }

    def prepare_x(self, x: Sequences) -> dict[str, Any]:
        """What each part makes of x."""
        return self._of_parts(x, "x")

    def prepare_y(self, y: Sequences) -> dict[str, Any]:
        """What each part makes of y."""
        return self._of_parts(y, "y")

    def _of_parts(self, side: Sequences, which: str) -> dict[str, Any]:
        # Parts that compare the L2-normalised steps themselves share one tensor of them: it is
        # made once, and travels once between processes.
        trees: dict[str, Any] = {}
        common = None
        for name, part in self.parts.items():
            projected = getattr(part, f"project_{which}")(side)
            prepare = getattr(part, f"prepare_{which}")
            if projected is side and _is_default(part, which):
                common = trees[name] = prepare(side) if common is None else common
            else:
                trees[name] = prepare(projected)
        return trees

    def prepare_align_x(self, x: Sequences) -> dict[str, Any]:
        """What the alignment of each part needs of x."""
        return {name: part.prepare_align_x(part.project_x(x)) for name, part in self.parts.items()}

    def prepare_align_y(self, y: Sequences) -> dict[str, Any]:
        """What the alignment of each part needs of y."""
        return {name: part.prepare_align_y(part.project_y(y)) for name, part in self.parts.items()}

    def score(self, x: dict[str, Any], y: dict[str, Any]) -> Float[Tensor, "b c"]:
        return self._mean({name: part.score(x[name], y[name]) for name, part in self.parts.items()})

    def score_all(
        self, x: dict[str, Any], y: dict[str, Any], steps: tuple[int, int]
    ) -> Float[Tensor, "B C"]:
        """The weighted mean of what each part's own way over all pairs gives."""
        # Those with a tree of their own first, so that in backward, which goes the other way, the
        # gradients to their trees do not wait, in memory, for the other parts.
        parts = self.parts
        alone = [name for name in parts if sum(x[name] is tree for tree in x.values()) == 1]
        order = alone + [name for name in parts if name not in alone]
        scores = {name: parts[name].score_all(x[name], y[name], steps) for name in order}
        return self._mean({name: scores[name] for name in parts})

    def align(self, x: dict[str, Any], y: dict[str, Any]) -> Float[Tensor, "n t l"]:
        """The weighted mean of the parts' alignments, each scaled to sum to 1 over a pair."""
        shares = {}
        for name, part in self.parts.items():
            weights = part.align(x[name], y[name])
            total = weights.sum((1, 2), keepdim=True)
            shares[name] = weights / total.masked_fill(total == 0, 1.0)
        return self._mean(shares)

    def _mean(self, values: dict[str, Tensor]) -> Tensor:
        # In the dtype of what is weighed: rounded once more each, they would not sum to their sum.
        dtype = next(iter(values.values())).dtype
        logs = torch.cat([self.log_weights[_PREFIX + name] for name in values])
        shares = torch.softmax(logs.to(dtype), 0)
        return sum(share * value for share, value in zip(shares, values.values(), strict=True))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        saved = {
            key.removeprefix(f"{prefix}log_weights.{_PREFIX}")
            for key in state_dict
            if key.startswith(f"{prefix}log_weights.{_PREFIX}")
        }
        error_messages: list[str] = args[-1]
        for name in sorted(saved - set(self.parts)):
            error_messages.append(
                f"the checkpoint's combined similarity has the part {name!r}, which is not a part "
                f"here (it {_standing(name)}); this one has {', '.join(self.parts)}"
            )


def _made(name: str, options: Mapping[str, Any], *, asked: bool) -> Similarity:
    """The part; whoever reads that it cannot be made learns which it is, and what to do."""
    try:
        return get_similarity(name, **dict(options))
    except Exception as error:
        info = _info(name)
        if info is None:
            raise
        part = f"the part {name!r} of {info.distribution} {info.version}".rstrip()
        if asked:
            error.add_note(
                f"raised by {part}; to leave it out of combined, do not name it in parts"
            )
            raise
        raise PluginError(
            f"{part} cannot be made: {type(error).__name__}: {error}; to have combined without it, "
            "name the others in parts, or leave its plugin out with CLIPSEQ_DISABLE"
        ) from error


def _info(name: str) -> SimilarityInfo | None:
    try:
        return available_similarities([name]).get(name)
    except PluginError:  # two plugins offer it, and the error names them
        return None


def _standing(name: str) -> str:
    try:
        return "is registered" if name in available_similarities([name]) else _ABSENT
    except PluginError:
        return "is offered twice"


def _checked(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, SupportsFloat):
        raise TypeError(f"the weight of {name!r} must be a number, got {weight!r}")
    value = float(weight)
    if not 0 < value < float("inf"):
        raise ValueError(
            f"the weight of {name!r} must be positive and finite, got {weight!r}; "
            "to leave a part out, do not name it in parts"
        )
    return value


def _is_default(part: Similarity, which: str) -> bool:
    """Whether `part` prepares a side as `Similarity` does."""
    cls = type(part)
    default = cls.prepare_x is Similarity.prepare_x
    return default and (which == "x" or cls.prepare_y is Similarity.prepare_y)
