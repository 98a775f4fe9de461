"""The hooks by which a distribution offers similarities and losses. It implements one or both."""

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

    Called once per process, at the first look-up. A name matches ``[a-z][a-z0-9_]*``; a class is
    a concrete subclass of `Similarity` whose options are keyword arguments with defaults.

    Result: every name becomes available to `get_similarity`, and to ``combined`` unless the class
    is composite.

    Failure: an exception, a bad name or a bad class leaves out this plugin alone, with one
    `PluginWarning` that names its distribution and the cause. A name that two plugins offer is a
    `PluginError` at every look-up, until one of them is uninstalled or disabled.
    """


@hookspec
def clipseq_losses() -> Mapping[str, type[PairLoss]]:  # type: ignore[empty-body]
    """Return the losses that this plugin offers: name -> class.

    Called once per process, at the first look-up. A name matches ``[a-z][a-z0-9_]*`` and is
    neither "clip" nor "siglip"; a class is a concrete subclass of `PairLoss` whose options are
    keyword arguments with defaults.

    Result: every name becomes available to `get_loss`, and as ``kind`` of `SequenceLoss`.

    Failure: as with `clipseq_similarities`. A plugin that implements both hooks is left out as a
    whole.
    """
