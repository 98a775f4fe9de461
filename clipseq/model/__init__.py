"""The model: two towers, their losses, and how a model is saved and loaded."""

from clipseq.model.clip import CLIP
from clipseq.model.config import ModelConfig
from clipseq.model.explanation import ExplainedPart, Explanation
from clipseq.model.saved import CardFacts

__all__ = ["CLIP", "CardFacts", "ExplainedPart", "Explanation", "ModelConfig"]
