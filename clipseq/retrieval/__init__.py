"""A trained model at work: encode items of any length, keep them, and search them."""

from clipseq.retrieval.encoded import Encoded
from clipseq.retrieval.ragged import Ids, Ragged

__all__ = ["Encoded", "Ids", "Ragged"]
