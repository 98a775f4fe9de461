"""The radar simulator: people moving in front of a radar, and captions that describe them.

The modules, in the order of the data's way: `captions` (phrases for actions), `body` (a person as
points), `motions` (movements for actions), `performance` (actions in a row), `mocap` (recorded
motion instead), `radar` (points to maps), and `clips` (the data set).
"""

from clipseq.data.simulation.clips import simulate
from clipseq.data.simulation.radar import Radar

__all__ = ["Radar", "simulate"]
