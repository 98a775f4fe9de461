"""The best match of every window (MaxSim over sliding windows): the similarity ``local``."""

from collections.abc import Mapping

from clipseq import Similarity, hookimpl
from clipseq_local.similarity import LocalSimilarity

__all__ = ["LocalSimilarity"]


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"local": LocalSimilarity}
