"""The registry of similarities: what plugins offer, found through the entry points `clipseq`."""

from clipseq.registry.lookup import (
    FailedPlugin,
    LoadedPlugin,
    SimilarityInfo,
    available_similarities,
    disabled_plugins,
    failed_plugins,
    get_similarity,
    register_similarity,
    registered,
)

__all__ = [
    "FailedPlugin",
    "LoadedPlugin",
    "SimilarityInfo",
    "available_similarities",
    "disabled_plugins",
    "failed_plugins",
    "get_similarity",
    "register_similarity",
    "registered",
]
