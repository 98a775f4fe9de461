"""The model: two towers, their losses, and how a model is saved and loaded."""

from clipseq.model.clip import CLIP

__all__ = ["CLIP"]
