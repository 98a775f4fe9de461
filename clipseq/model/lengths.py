"""A warning of options that make a similarity trivial for the lengths of the data."""

import warnings

import torch.distributed as dist

from clipseq.encoders import Tower
from clipseq.sequence_loss import SequenceLoss
from clipseq.sequences import Sequences


def warn_of_degenerate(
    loss: SequenceLoss, similarity: str, towers: tuple[Tower, Tower], x: Sequences, y: Sequences
) -> None:
    """Report each reason why `loss` cannot compare parts of the sequences of a batch, as a warning.

    In a distributed run, only the first process warns.

    Args:
        loss: the loss, which has the similarity.
        similarity: its name.
        towers: the towers of x and of y.
        x: sequences of x, padded to the longest of the batch.
        y: sequences of y, likewise.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
        return
    steps = x.mask.shape[1], y.mask.shape[1]
    found = [
        f"every {tower.name} of the first batch has a single step, so neither its order nor its "
        f"parts can be compared; set a smaller patch_frames, or use longer recordings"
        for tower, longest in zip(towers, steps, strict=True)
        if longest == 1 and tower.is_signal
    ]
    if 1 not in steps:
        reasons = getattr(loss.similarity_fn, "degenerate", lambda *_: ())(*steps)
        found = [f"{similarity} {reason}" for reason in reasons]
    x_name, y_name = (tower.name for tower in towers)
    for reason in found:
        warnings.warn(f"x is {x_name}, y is {y_name}: {reason}", stacklevel=2)
