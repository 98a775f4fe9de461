"""Groups of items with equal captions, which are positives of one another."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def caption_groups(text: Any, mask: Tensor | None = None) -> Int[Tensor, "B"] | None:
    """Return one integer for each item, equal where the captions (or real token ids) are equal.

    They are 64-bit hashes, so they can be compared between the processes of a distributed run.

    Args:
        text: captions, or token ids (B, L).
        mask: (B, L) bool, True at real ids. None: all are real.

    Returns:
        (B,) int64 on the CPU; None if the items are neither captions nor token ids.
    """
    if isinstance(text, Tensor):
        if text.ndim != 2 or text.is_floating_point():
            return None
        rows = text.cpu()
        real = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask.cpu()
        keys = [repr(row[r].tolist()) for row, r in zip(rows, real, strict=True)]
    elif isinstance(text, Sequence) and all(isinstance(caption, str) for caption in text):
        keys = list(text)
    else:
        return None
    digests = [
        hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest() for key in keys
    ]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])
