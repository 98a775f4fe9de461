"""Reranking: the second stage of a search, by a similarity on the sequences of the candidates."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from clipseq.engine.options import check_dense, check_kind
from clipseq.retrieval.encoded import Encoded
from clipseq.retrieval.ragged import Ragged
from clipseq.sequences import Sequences
from clipseq.similarity import Prepared, Similarity

Items = Encoded | Sequences | Sequence[Tensor]
"""Sequences as `CLIP.encode` returns them, as a padded batch, or as a list of tensors (T_i, D)."""

_GROWTH = 1.3
"""Largest ratio of two lengths in a group, which is prepared together and padded to its longest."""


class Ranked(NamedTuple):
    """The candidates of one query, the best first.

    Attributes:
        places: (n,) place of each candidate in the list of that query.
        scores: (n,) its score, in descending order.
    """

    places: Int[Tensor, "n"]
    scores: Float[Tensor, "n"]


@torch.no_grad()
def rerank(
    similarity: Similarity,
    queries: Items,
    candidates: Sequence[Items],
    *,
    query_side: Literal["x", "y"] = "x",
) -> list[Ranked]:
    """Sort the candidates of every query by a similarity, for candidates from any database.

    >>> similarity = clipseq.get_similarity("local", window=2)
    >>> queries = [torch.randn(5, 8), torch.randn(3, 8)]
    >>> candidates = [[torch.randn(4, 8), torch.randn(9, 8)], [torch.randn(2, 8)]]
    >>> [len(ranked.places) for ranked in rerank(similarity, queries, candidates)]
    [2, 1]

    The pairs of all queries are scored together, in tiles of similar lengths, so that one call with
    a hundred queries is many times faster than a hundred calls. Candidates with equal scores stay
    in their order.

    Args:
        similarity: any similarity; a model's own is ``model.sequence_loss_fn.similarity_fn``.
        queries: Q sequences.
        candidates: Q lists, the candidates of each query; a list may be empty.
        query_side: the side of the similarity that the queries are: "x" or "y", as in
            ``similarity(x, y)``. Most similarities treat the two sides alike.

    Returns:
        One `Ranked` for each query, on the device of the similarity.

    Raises:
        TypeError: `similarity` is not a similarity; queries or candidates are not sequences.
        ValueError: there is not one list of candidates for each query; the numbers of features
            differ; `query_side` is neither "x" nor "y".
    """
    check_kind("similarity", similarity, Similarity, "a Similarity", "see get_similarity")
    check_kind("candidates", candidates, (list, tuple), "a list with candidates for each query")
    if query_side not in ("x", "y"):
        raise ValueError(f"query_side must be 'x' or 'y', got {query_side!r}")
    asked = _ragged("queries", queries)
    lists = [
        _ragged(f"candidates[{i}]", some, like=asked.values) for i, some in enumerate(candidates)
    ]
    if len(lists) != len(asked):
        raise ValueError(
            f"candidates must hold one list for each of the {len(asked)} queries, got {len(lists)}"
        )
    counts = torch.tensor([len(some) for some in lists], dtype=torch.int64)
    everything = Ragged.from_lengths(
        torch.cat([some.values for some in lists]), torch.cat([some.lengths for some in lists])
    )
    owner = torch.repeat_interleave(torch.arange(len(lists)), counts)
    scores = score_pairs(
        similarity, asked, everything, owner, torch.arange(len(owner)), query_side=query_side
    )
    ranked = []
    for some in scores.split(counts.tolist()):
        order = some.argsort(descending=True, stable=True)
        ranked.append(Ranked(order, some[order]))
    return ranked


def score_pairs(
    similarity: Similarity,
    queries: Ragged,
    candidates: Ragged,
    query: Int[Tensor, "P"],
    candidate: Int[Tensor, "P"],
    *,
    query_side: Literal["x", "y"],
) -> Float[Tensor, "P"]:
    """Score the pairs of query ``query[p]`` and candidate ``candidate[p]``.

    Every sequence is prepared once, in groups of similar lengths. The pairs of two groups are
    scored together, whichever queries they belong to.
    """
    other: Literal["x", "y"] = "y" if query_side == "x" else "x"
    device = next((p.device for p in similarity.parameters()), queries.values.device)
    scores = torch.empty(len(query), device=device)
    query_groups, query_group, query_place = _groups(queries)
    candidate_groups, candidate_group, candidate_place = _groups(candidates)
    both = query_group[query] * len(candidate_groups) + candidate_group[candidate]
    prepared = [_prepared(similarity, query_side, queries, some, device) for some in query_groups]
    for number, some in enumerate(candidate_groups):
        theirs: Prepared | None = None
        for asked, mine in enumerate(prepared):
            pairs = (both == asked * len(candidate_groups) + number).nonzero().flatten()
            if not len(pairs):
                continue
            theirs = theirs or _prepared(similarity, other, candidates, some, device)
            size = max(1, similarity.tile_elements // (mine.steps * theirs.steps))
            for few in pairs.split(size):
                one = _chosen(mine, query_place[query[few]])
                two = _chosen(theirs, candidate_place[candidate[few]])
                x, y = (one, two) if query_side == "x" else (two, one)
                scores[few.to(device)] = similarity.compare_pairs(x, y).to(scores.dtype)
    return scores


def _groups(items: Ragged) -> tuple[list[Tensor], Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Group sequences of similar lengths; return the groups, and group and place of each item."""
    lengths = items.lengths.cpu()
    order = lengths.argsort()
    ends: list[int] = []
    bound = 0.0
    for place, length in enumerate(lengths[order].tolist()):
        if length > bound:
            ends.append(place)
            bound = max(1, length) * _GROWTH
    groups = list(order.tensor_split(ends[1:])) if len(order) else []
    group, place_in = torch.empty_like(order), torch.empty_like(order)
    for number, some in enumerate(groups):
        group[some] = number
        place_in[some] = torch.arange(len(some))
    return groups, group, place_in


def _prepared(
    similarity: Similarity,
    side: Literal["x", "y"],
    items: Ragged,
    places: Tensor,
    device: torch.device,
) -> Prepared:
    values, mask = items.take(places.to(items.offsets.device)).padded()
    return similarity.prepare_side(side, values.to(device), mask.to(device))


def _chosen(prepared: Prepared, places: Tensor) -> Prepared:
    """Return the prepared sequences at `places`; a leaf that two trees share is copied once."""
    leaves, spec = tree_flatten(prepared.tree)
    places = places.to(prepared.occupied.device)
    copies: dict[int, Tensor] = {}
    for leaf in leaves:
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.index_select(0, places)
    tree = tree_unflatten([copies[id(leaf)] for leaf in leaves], spec)
    return Prepared(tree, prepared.occupied[places], prepared.steps)


def _ragged(name: str, items: Items, like: Tensor | None = None) -> Ragged:
    if isinstance(items, Encoded):
        if items.steps is None:
            raise ValueError(
                f"{name} must have sequences, got pooled features only; encode them with a model "
                "that compares sequences"
            )
        ragged = items.steps
    elif isinstance(items, Sequences):
        ragged = Ragged.from_lengths(items.values[items.mask], items.lengths)
    elif isinstance(items, list | tuple) and all(isinstance(item, Tensor) for item in items):
        for k, item in enumerate(items):
            check_dense(f"{name}[{k}]", item)
            if item.ndim != 2 or not item.is_floating_point():
                raise ValueError(
                    f"{name}[{k}] must be floating point (T, D), got {item.dtype} "
                    f"{tuple(item.shape)}"
                )
        if not items:
            values = torch.empty(0, 0) if like is None else like[:0]
            return Ragged.from_lengths(values, torch.zeros(0, dtype=torch.int64))
        lengths = torch.tensor([len(item) for item in items], device=items[0].device)
        ragged = Ragged.from_lengths(torch.cat(list(items)), lengths)
    else:
        raise TypeError(
            f"{name} must be Encoded, Sequences, or a list of tensors (T, D), got "
            f"{type(items).__name__}"
        )
    if like is not None:
        if ragged.values.shape[1] != like.shape[1]:
            raise ValueError(
                f"{name} must have D={like.shape[1]} features, as the queries have, got "
                f"D={ragged.values.shape[1]}"
            )
        return Ragged(ragged.values.to(like), ragged.offsets.to(like.device))
    return ragged
