"""The radar simulator: people moving in front of a radar, and captions that describe them.

The modules, in the order in which data flows: `captions` (phrases for actions), `body` (a person
as points), `motions` (movements for actions), `performance` (sequences of actions), `mocap`
(recorded motion instead), `radar` (points to maps), and `clips` (the data set).
"""

from clipseq.data.simulation.clips import simulate
from clipseq.data.simulation.radar import Radar

__all__ = ["Radar", "simulate"]
