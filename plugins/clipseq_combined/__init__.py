"""A learnable weighted mean of the others: the similarity ``combined``."""

from collections.abc import Mapping

from clipseq import Similarity, hookimpl
from clipseq_combined.similarity import CombinedSimilarity

__all__ = ["CombinedSimilarity"]


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"combined": CombinedSimilarity}
