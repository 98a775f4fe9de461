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
    r"""A weighted mean of similarities with learnt weights: ``S = sum_k w_k S_k / sum_k w_k``.

    This is the recommended similarity. Each part sees the same sequences, after this similarity's
    own projection if it has one. Weights stay positive because their logarithms are learnt. Cost:
    the sum of the costs of the parts.

    Args:
        parts: similarities to combine, name -> options. None: every registered similarity that is
            not composite, including those of third parties, with its `combined_options`.
        weights: name -> starting weight, positive and finite; a part that is not named starts at
            its `default_weight`.
        embed_dim: see `clipseq.Similarity`.

    Attributes:
        weights: name -> current weight.
        parts: name -> similarity.

    Raises:
        UnknownSimilarityError: a part is not registered.
        PluginError: `parts` is None, and a registered similarity cannot be created or a name is
            offered twice. A part that is named in `parts` raises its own error, with a note that
            names it.
        TypeError: a weight is not a number.
        ValueError: there are no parts, a weight is not positive and finite, or a weight does not
            belong to a part.
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
            parts = {
                name: info.cls.combined_options
                for name, info in infos.items()
                if not info.composite
            }
        elif not isinstance(parts, Mapping) or not all(
            isinstance(options, Mapping) for options in parts.values()
        ):
            raise TypeError(f"parts must map names to options, such as {{}}, got {parts!r}")
        if not parts:
            raise ValueError("parts must name at least one similarity, got none")
        if weights is not None and not isinstance(weights, Mapping):
            raise TypeError(f"weights must map names to numbers, got {weights!r}")
        starts = dict(weights or {})
        self._parts = nn.ModuleDict()
        self.log_weights = nn.ParameterDict()
        for name, options in parts.items():
            part = self._parts[_PREFIX + name] = _make(name, options, asked=asked)
            weight = _check_weight(name, starts.pop(name, part.default_weight))
            # One dimension: FSDP2 does not shard parameters without one.
            self.log_weights[_PREFIX + name] = nn.Parameter(torch.tensor([math.log(weight)]))
        if starts:
            raise ValueError(
                f"weights must name parts ({', '.join(parts)}), got {', '.join(starts)}"
            )

    @property
    def parts(self) -> dict[str, Similarity]:
        """The parts by name."""
        return {
            name.removeprefix(_PREFIX): cast(Similarity, part) for name, part in self._parts.items()
        }

    @property
    def weights(self) -> dict[str, float]:
        """The current weights by name; S divides by their sum."""
        return {
            name.removeprefix(_PREFIX): float(value.detach().exp())
            for name, value in self.log_weights.items()
        }

    def degenerate(self, x_steps: int, y_steps: int) -> tuple[str, ...]:
        """Return the reasons of the parts, each with the part's name."""
        return tuple(
            f"has the part {name!r}, which {reason}"
            for name, part in self.parts.items()
            for reason in part.degenerate(x_steps, y_steps)
        )

    def prepare_x(self, x: Sequences) -> dict[str, Any]:
        """Return the result of each part's `prepare_x`."""
        return self._prepare_parts(x, "x")

    def prepare_y(self, y: Sequences) -> dict[str, Any]:
        """Return the result of each part's `prepare_y`."""
        return self._prepare_parts(y, "y")

    def _prepare_parts(self, side: Sequences, which: str) -> dict[str, Any]:
        # Parts that compare plain L2-normalised steps share one tensor of them: it is computed
        # once, and sent once between processes.
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
        """Return the result of each part's `prepare_align_x`."""
        return {name: part.prepare_align_x(part.project_x(x)) for name, part in self.parts.items()}

    def prepare_align_y(self, y: Sequences) -> dict[str, Any]:
        """Return the result of each part's `prepare_align_y`."""
        return {name: part.prepare_align_y(part.project_y(y)) for name, part in self.parts.items()}

    def score(self, x: dict[str, Any], y: dict[str, Any]) -> Float[Tensor, "b c"]:
        return self._mean({name: part.score(x[name], y[name]) for name, part in self.parts.items()})

    def score_all(
        self, x: dict[str, Any], y: dict[str, Any], steps: tuple[int, int]
    ) -> Float[Tensor, "B C"]:
        """Return the weighted mean of the results of each part's `score_all`."""
        # Parts with a tree of their own come first. Backward runs in reverse order, so the
        # gradients to these trees do not stay in memory while the other parts are differentiated.
        parts = self.parts
        alone = [name for name in parts if sum(x[name] is tree for tree in x.values()) == 1]
        order = alone + [name for name in parts if name not in alone]
        scores = {name: parts[name].score_all(x[name], y[name], steps) for name in order}
        return self._mean({name: scores[name] for name in parts})

    def score_all_pairs(
        self, x: dict[str, Any], y: dict[str, Any], steps: tuple[int, int]
    ) -> Float[Tensor, "n"]:
        """Return the weighted mean of the results of each part's `score_all_pairs`."""
        parts = self.parts.items()
        return self._mean({k: part.score_all_pairs(x[k], y[k], steps) for k, part in parts})

    def align(self, x: dict[str, Any], y: dict[str, Any]) -> Float[Tensor, "n t l"]:
        """Return the weighted mean of the parts' alignments, each scaled to a sum of 1 per pair."""
        shares = {}
        for name, part in self.parts.items():
            weights = part.align(x[name], y[name])
            total = weights.sum((1, 2), keepdim=True)
            shares[name] = weights / total.masked_fill(total == 0, 1.0)
        return self._mean(shares)

    def _mean(self, values: dict[str, Tensor]) -> Tensor:
        # Shares are computed in the dtype of the values: if they were rounded again, they would not
        # sum to 1.
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


def _make(name: str, options: Mapping[str, Any], *, asked: bool) -> Similarity:
    """Create the part; an error says which part cannot be created and what to do about it."""
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
            f"{part} cannot be made: {type(error).__name__}: {error}; to use combined without it, "
            "name the others in parts, or leave its plugin out with CLIPSEQ_DISABLE"
        ) from error


def _info(name: str) -> SimilarityInfo | None:
    try:
        return available_similarities([name]).get(name)
    except PluginError:  # two plugins offer it; the error at hand names them
        return None


def _standing(name: str) -> str:
    try:
        return "is registered" if name in available_similarities([name]) else _ABSENT
    except PluginError:
        return "is offered twice"


def _check_weight(name: str, weight: object) -> float:
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
    """Return True if `part` prepares that side in the way of the base class."""
    cls = type(part)
    default = cls.prepare_x is Similarity.prepare_x
    return default and (which == "x" or cls.prepare_y is Similarity.prepare_y)
