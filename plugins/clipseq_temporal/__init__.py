"""Both sequences in order, by a normalised soft-DTW: the similarity ``temporal``."""

from collections.abc import Mapping

from clipseq import Similarity, hookimpl
from clipseq_temporal.similarity import TemporalSimilarity

__all__ = ["TemporalSimilarity"]


@hookimpl
def clipseq_similarities() -> Mapping[str, type[Similarity]]:
    return {"temporal": TemporalSimilarity}
