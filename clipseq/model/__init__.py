"""The model: two towers, their losses, and how a model is saved and loaded."""

from clipseq.model.clip import CLIP
from clipseq.model.config import ModelConfig
from clipseq.model.explanation import ExplainedPart, Explanation

__all__ = ["CLIP", "ExplainedPart", "Explanation", "ModelConfig"]
