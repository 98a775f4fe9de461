"""One batch over several processes: every pair is scored once, and no process holds all pairs.

Each process owns the rows of its own x, which it scores with the y of all processes. The prepared
y of the other processes arrive in blocks, and the gradients of y are sent back the same way. The
losses of `clipseq.losses` do this by themselves once torch.distributed is initialised.

`world` describes the processes whose items make up the batch, `blocks` packs the y of a process
into one buffer, `carriers` moves the blocks, `scores` computes the rows, `traffic` counts the bytes
sent, and `sharding` supports models under FSDP2. A process is called a rank here, as in torch.
"""

from clipseq.distributed.scores import Gather, score_rows
from clipseq.distributed.traffic import Traffic, count_traffic
from clipseq.distributed.world import World

__all__ = ["Gather", "Traffic", "World", "count_traffic", "score_rows"]
