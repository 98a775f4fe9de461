"""clipseq: contrastive learning that keeps the sequence.

>>> import clipseq, torch
>>> similarity = clipseq.get_similarity("local", window=16)
>>> x, y = torch.randn(4, 62, 256), torch.randn(6, 20, 256)
>>> similarity(x, y).shape
torch.Size([4, 6])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipseq.engine.unit_vectors import unit
from clipseq.errors import (
    CheckpointError,
    ClipseqError,
    ConfigError,
    DataError,
    PluginError,
    PluginWarning,
    UnknownLossError,
    UnknownSimilarityError,
)
from clipseq.losses import ClipLoss, PairLoss, SigLipLoss
from clipseq.registry import (
    FailedPlugin,
    LossInfo,
    SimilarityInfo,
    available_losses,
    available_similarities,
    failed_plugins,
    get_loss,
    get_similarity,
    register_loss,
    register_similarity,
)
from clipseq.registry.hookspecs import hookimpl
from clipseq.sequence_loss import SequenceLoss
from clipseq.sequences import Alignment, Sequences, pad
from clipseq.similarity import Similarity

if TYPE_CHECKING:
    from clipseq.encoders import SignalConfig, TextConfig
    from clipseq.model import CLIP, ModelConfig
    from clipseq.retrieval import Encoded, Index, rerank

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "Alignment",
    "CheckpointError",
    "ClipLoss",
    "ClipseqError",
    "ConfigError",
    "DataError",
    "Encoded",
    "FailedPlugin",
    "Index",
    "LossInfo",
    "ModelConfig",
    "PairLoss",
    "PluginError",
    "PluginWarning",
    "SequenceLoss",
    "Sequences",
    "SigLipLoss",
    "SignalConfig",
    "Similarity",
    "SimilarityInfo",
    "TextConfig",
    "UnknownLossError",
    "UnknownSimilarityError",
    "__version__",
    "available_losses",
    "available_similarities",
    "failed_plugins",
    "get_loss",
    "get_similarity",
    "hookimpl",
    "pad",
    "register_loss",
    "register_similarity",
    "rerank",
    "unit",
]

# Imported on first use, so that a user of similarities and losses does not wait for the model.
_LAZY = {
    "CLIP": "clipseq.model",
    "Encoded": "clipseq.retrieval",
    "Index": "clipseq.retrieval",
    "rerank": "clipseq.retrieval",
    "ModelConfig": "clipseq.model",
    "SignalConfig": "clipseq.encoders",
    "TextConfig": "clipseq.encoders",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'clipseq' has no attribute {name!r}")
