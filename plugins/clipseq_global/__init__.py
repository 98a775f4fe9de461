"""One vector per sequence, as in CLIP: the similarity ``global``."""

from collections.abc import Mapping

from clipseq import Similarity, hookimpl
from clipseq_global.similarity import GlobalSimilarity

__all__ = ["GlobalSimilarity"]


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"global": GlobalSimilarity}
