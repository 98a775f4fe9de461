"""One batch over several processes: every pair is scored once, and no process holds everything.

Each process owns the rows of its own x, which it scores with the y of all processes. The prepared
y of the other processes arrive in blocks, and the gradients of y are sent back the same way. The
losses of `clipseq.losses` do this by themselves once torch.distributed is initialised.

`world` says whose items make up the batch, `blocks` packs a process's y into one buffer,
`carriers` move the blocks, `scores` computes the rows, `traffic` counts what is sent, and
`sharding` serves models under FSDP2. A process is called a rank here, as torch calls it.
"""

from clipseq.distributed.scores import Gather, score_rows
from clipseq.distributed.traffic import Traffic, count_traffic
from clipseq.distributed.world import World

__all__ = ["Gather", "Traffic", "World", "count_traffic", "score_rows"]
