"""One batch over many processes: every pair scored once, no process with all sequences.

Each process owns its rows: its own x, scored with the y of all. What `prepare_y` made of the other
processes' y arrives in blocks, and gradients of y travel back the same way. The losses of
`clipseq.losses` use this by themselves once torch.distributed is initialised.
"""

from clipseq.distributed.scores import GATHERS, Gather, scores_of_all
from clipseq.distributed.traffic import Traffic, count_traffic
from clipseq.distributed.world import World

__all__ = ["GATHERS", "Gather", "Traffic", "World", "count_traffic", "scores_of_all"]
