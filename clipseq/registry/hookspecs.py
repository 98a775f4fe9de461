"""The hooks through which a distribution offers similarities and losses; it implements either."""

from collections.abc import Mapping

import pluggy

from clipseq.losses import PairLoss
from clipseq.similarity import Similarity

hookspec = pluggy.HookspecMarker("clipseq")
hookimpl = pluggy.HookimplMarker("clipseq")
"""Marks a function of a plugin module as an implementation of a clipseq hook."""


@hookspec
def clipseq_similarities() -> Mapping[str, type[Similarity]]:  # type: ignore[empty-body]
    """Return the similarities that this plugin offers: name -> class.

    It is called once per process, at the first look-up. A name must match ``[a-z][a-z0-9_]*``; a
    class must be a concrete subclass of `Similarity` whose options are keyword arguments with
    defaults.

    Result: every name becomes available to `get_similarity`, and to ``combined`` unless the class
    is composite.

    Failure: after an exception, a bad name or a bad class, only this plugin is unavailable, and one
    `PluginWarning` names its distribution and the cause. If two plugins offer a name, every
    look-up of it raises `PluginError` until one of them is uninstalled or disabled.
    """


@hookspec
def clipseq_losses() -> Mapping[str, type[PairLoss]]:  # type: ignore[empty-body]
    """Return the losses that this plugin offers: name -> class.

    It is called once per process, at the first look-up. A name must match ``[a-z][a-z0-9_]*`` and
    be neither "clip" nor "siglip"; a class must be a concrete subclass of `PairLoss` whose options
    are keyword arguments with defaults.

    Result: every name becomes available to `get_loss`, and as ``kind`` of `SequenceLoss`.

    Failure: as with `clipseq_similarities`. If a plugin implements both hooks and one fails, both
    are unavailable.
    """
