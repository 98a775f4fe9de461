"""Each step against what it attends to: the similarity ``attention``."""

from collections.abc import Mapping

from clipseq import Similarity, hookimpl
from clipseq_attention.similarity import AttentionSimilarity

__all__ = ["AttentionSimilarity"]


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"attention": AttentionSimilarity}
