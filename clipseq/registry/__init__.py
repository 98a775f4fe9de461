"""The registry of similarities and losses that plugins offer through entry points `clipseq`.

`discovery` finds and loads plugins, `validation` checks the classes that they offer, `lookup` lists
and creates by name, and `hookspecs` defines the hooks.
"""

from clipseq.registry.discovery import FailedPlugin, LoadedPlugin
from clipseq.registry.lookup import (
    Report,
    available_losses,
    available_similarities,
    disabled_plugins,
    failed_plugins,
    get_loss,
    get_similarity,
    register_loss,
    register_similarity,
    report,
)
from clipseq.registry.validation import LossInfo, SimilarityInfo

__all__ = [
    "FailedPlugin",
    "LoadedPlugin",
    "LossInfo",
    "Report",
    "SimilarityInfo",
    "available_losses",
    "available_similarities",
    "disabled_plugins",
    "failed_plugins",
    "get_loss",
    "get_similarity",
    "register_loss",
    "register_similarity",
    "report",
]
