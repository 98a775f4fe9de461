"""The model: two towers, their losses, and how a model is saved and loaded."""

from clipseq.model.clip import CLIP
from clipseq.model.config import ModelConfig

__all__ = ["CLIP", "ModelConfig"]
