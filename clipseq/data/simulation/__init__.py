"""The radar simulator: persons in motion before a radar, told in captions."""

from clipseq.data.simulation.clips import simulate
from clipseq.data.simulation.radar import Radar

__all__ = ["Radar", "simulate"]
