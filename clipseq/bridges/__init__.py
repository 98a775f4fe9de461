"""Similarities in the form that other libraries call them."""

from clipseq.bridges.scoring_functions import (
    DistillationFct,
    PairwiseFct,
    SimilarityFct,
    distillation_fct,
    pairwise_fct,
    similarity_fct,
)

__all__ = [
    "DistillationFct",
    "PairwiseFct",
    "SimilarityFct",
    "distillation_fct",
    "pairwise_fct",
    "similarity_fct",
]
