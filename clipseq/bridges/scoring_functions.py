"""Any similarity as the scoring function of sentence-transformers' multi-vector models.

The losses of ``sentence_transformers.multi_vector_encoder`` (version 6) call a scoring function
with embeddings of tokens and masks. Three forms exist, and each has its function here:

=========================================================  ====================
losses                                                     function
=========================================================  ====================
MultiVectorMultipleNegativesRankingLoss, its cached form   `similarity_fct`
MultiVectorMarginMSELoss                                   `pairwise_fct`
MultiVectorDistillKLDivLoss                                `distillation_fct`
=========================================================  ====================

Scores are cosines, in [-1, 1], unlike the sums of ColBERT's MaxSim: give the loss a scale (20, say)
or a temperature (0.05) to match.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipseq.engine.options import check_dense
from clipseq.sequences import Sequences, pad
from clipseq.similarity import Similarity

Embeddings = Any
"""A tensor of embeddings padded to one length, or a list of arrays (T_i, D) of any lengths."""


def similarity_fct(similarity: Similarity) -> "SimilarityFct":
    """Return `similarity` in the form of ``colbert_scores``: every query with every document.

    >>> import clipseq, torch
    >>> score = similarity_fct(clipseq.get_similarity("local", window=1))
    >>> score(torch.randn(4, 6, 8), torch.randn(4, 2, 9, 8)).shape
    torch.Size([4, 8])

    Args:
        similarity: any `Similarity`; its parameters are trained with the loss that holds the
            function.

    Raises:
        TypeError: `similarity` is not a similarity.
    """
    return SimilarityFct(similarity)


def pairwise_fct(similarity: Similarity) -> "PairwiseFct":
    """Return `similarity` in the form of ``colbert_scores_pairwise``: query i with document i.

    Raises:
        TypeError: `similarity` is not a similarity.
    """
    return PairwiseFct(similarity)


def distillation_fct(similarity: Similarity) -> "DistillationFct":
    """Return `similarity` in the form of ``colbert_kd_scores``: each query with its own documents.

    Raises:
        TypeError: `similarity` is not a similarity.
    """
    return DistillationFct(similarity)


class _Fct(nn.Module):
    """A module, so that a loss that holds it trains the parameters of the similarity."""

    def __init__(self, similarity: Similarity) -> None:
        super().__init__()
        if not isinstance(similarity, nn.Module) or not hasattr(similarity, "compare_pairs"):
            raise TypeError(
                f"similarity must be a Similarity, got {similarity!r}; create one with "
                "get_similarity(name)"
            )
        self.similarity = similarity

    def get_config_dict(self) -> dict[str, Any]:
        """Return the name of the similarity, for a model card."""
        return {"similarity": type(self.similarity).__name__}


class SimilarityFct(_Fct):
    """The scores of every query with every document; see `similarity_fct`."""

    def forward(
        self,
        queries_embeddings: Embeddings,
        documents_embeddings: Embeddings,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (Q, C) scores; (Q, G·N) for documents (G, N, L, D), group after group.

        Args:
            queries_embeddings: (Q, T, D), or a list of arrays (T_i, D); one array (T, D) is one
                query.
            documents_embeddings: (C, L, D), (G, N, L, D), or a list of arrays (L_i, D).
            queries_mask: (Q, T), True or 1 at real tokens; None: all are real. Must be None for a
                list, whose arrays have no padding.
            documents_mask: (C, L) or (G, N, L), likewise.

        Raises:
            TypeError: embeddings that are not floating point, or a mask with a list.
            ValueError: wrong shapes; a mask with other numbers than 0 and 1.
        """
        queries = _read(queries_embeddings, queries_mask, "queries", ranks=(3,))
        documents = _read(documents_embeddings, documents_mask, "documents", ranks=(3, 4))
        scores: Tensor = self.similarity(
            queries.values, documents.values, queries.mask, documents.mask
        )
        return scores


class PairwiseFct(_Fct):
    """The scores of matched pairs; see `pairwise_fct`."""

    def forward(
        self,
        queries_embeddings: Embeddings,
        documents_embeddings: Embeddings,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (n,) scores of query i with document i; arguments as in `SimilarityFct`."""
        queries = _read(queries_embeddings, queries_mask, "queries", ranks=(3,))
        documents = _read(documents_embeddings, documents_mask, "documents", ranks=(3,))
        return self.similarity.pairs(queries.values, documents.values, queries.mask, documents.mask)


class DistillationFct(_Fct):
    """The scores of each query with its own documents; see `distillation_fct`."""

    def forward(
        self,
        queries_embeddings: Embeddings,
        documents_embeddings: Tensor,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (Q, N) scores of queries (Q, T, D) with documents (Q, N, L, D).

        Masks and errors are those of `SimilarityFct`.
        """
        queries = _read(queries_embeddings, queries_mask, "queries", ranks=(3,))
        documents = _read(documents_embeddings, documents_mask, "documents", ranks=(4,))
        count = len(queries.values)
        if len(documents_embeddings) != count:
            raise ValueError(
                f"documents_embeddings must be (Q, N, L, D) with the {count} queries first, got "
                f"{tuple(documents_embeddings.shape)}"
            )
        each = len(documents.values) // count
        scores: Tensor = self.similarity.pairs(
            queries.values.repeat_interleave(each, 0),
            documents.values,
            queries.mask.repeat_interleave(each, 0),
            documents.mask,
        )
        return scores.view(count, each)


def _read(embeddings: Embeddings, mask: Any, name: str, *, ranks: tuple[int, ...]) -> Sequences:
    """Return embeddings as sequences (n, T, D), with groups of documents one after the other."""
    if isinstance(embeddings, Sequence) and not isinstance(embeddings, str):
        if mask is not None:
            raise TypeError(
                f"{name}_mask must be None if {name}_embeddings is a list, whose arrays have no "
                f"padding, got {type(mask).__name__}"
            )
        return pad([_to_tensor(item, f"{name}_embeddings") for item in embeddings])
    values = _to_tensor(embeddings, f"{name}_embeddings")
    if values.ndim == 2:
        values = values[None]
    if values.ndim not in ranks or not values.is_floating_point():
        shapes = {3: "(n, T, D)", 4: "(n, N, T, D)"}
        raise ValueError(
            f"{name}_embeddings must be a floating point tensor "
            f"{' or '.join(shapes[rank] for rank in ranks)}, got {values.dtype} "
            f"{tuple(values.shape)}"
        )
    real = _read_mask(mask, values, name)
    return Sequences(values.flatten(0, -3), real.flatten(0, -2))


def _to_tensor(value: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} must be a tensor or an array, got {value!r}") from error
    check_dense(name, tensor)
    return tensor


def _read_mask(mask: Any, values: Tensor, name: str) -> Tensor:
    if mask is None:
        return torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
    mask = _to_tensor(mask, f"{name}_mask").to(values.device)
    if mask.ndim == 1:
        mask = mask[None]
    if mask.shape != values.shape[:-1]:
        raise ValueError(
            f"{name}_mask must be {tuple(values.shape[:-1])}, as {name}_embeddings is, got "
            f"{tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(
            f"{name}_mask must hold True or 1 at real tokens and False or 0 at padding, got other "
            f"numbers of {mask.dtype}"
        )
    return mask.bool()
