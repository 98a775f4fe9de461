"""A trained model at work: encode items of any length, keep them, search them, and rerank."""

from clipseq.retrieval.encoded import Encoded
from clipseq.retrieval.index import Hits, Index
from clipseq.retrieval.ragged import Ids, Ragged
from clipseq.retrieval.reranking import Ranked, rerank

__all__ = ["Encoded", "Hits", "Ids", "Index", "Ragged", "Ranked", "rerank"]
