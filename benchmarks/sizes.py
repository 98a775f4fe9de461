"""The sizes that are measured, and batches of them."""

from typing import NamedTuple

import torch
from torch import Tensor

FEATURES = 256

PADDINGS = ("full", "ragged")
"""Every step real, or lengths that are even between 1 and the longest."""


class Size(NamedTuple):
    """B sequences of T steps against C of L."""

    b: int
    c: int
    t: int
    length: int

    @property
    def cells(self) -> int:
        """B·C·T·L."""
        return self.b * self.c * self.t * self.length


SIZES = {
    "S1": Size(32, 32, 62, 20),
    "S2": Size(64, 64, 128, 32),
    "S3": Size(128, 128, 248, 77),
    "M64": Size(64, 64, 62, 20),
    "M128": Size(128, 128, 62, 20),
    "M256": Size(256, 256, 62, 20),
    "M512": Size(512, 512, 62, 20),
}
"""S: of batch and lengths together. M: of the batch alone, from S1's lengths on."""


def named(names: str) -> list[str]:
    """Sizes of a list with commas; M stands for all of its series.

    Raises:
        ValueError: no such size.
    """
    found: list[str] = []
    for name in names.split(","):
        series = [size for size in SIZES if name == "M" and size.startswith("M")]
        if not series and name not in SIZES:
            raise ValueError(f"no size {name!r}: there are {', '.join(SIZES)}, and M for all M's")
        found += series or [name]
    return found


class Batch(NamedTuple):
    """What a similarity is called with."""

    x: Tensor
    y: Tensor
    x_mask: Tensor | None
    y_mask: Tensor | None


def batch(size: Size, padding: str, features: int = FEATURES) -> Batch:
    """Random sequences that want gradients; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.b, size.t, features, generator=generator)
    y = torch.randn(size.c, size.length, features, generator=generator)
    for side in (x, y):
        # The gradients of the inputs are the caller's, as the inputs are.
        side.requires_grad_().grad = torch.zeros_like(side)
    if padding == "full":
        return Batch(x, y, None, None)

    def mask(count: int, steps: int) -> Tensor:
        lengths = torch.randint(1, steps + 1, (count, 1), generator=generator)
        return torch.arange(steps) < lengths

    return Batch(x, y, mask(size.b, size.t), mask(size.c, size.length))


def real_cells(inputs: Batch) -> int:
    """Cells of B·C·T·L in which both steps are real: what no way of computing can leave out."""
    x, y, x_mask, y_mask = inputs
    steps = x.shape[0] * x.shape[1] if x_mask is None else int(x_mask.sum())
    others = y.shape[0] * y.shape[1] if y_mask is None else int(y_mask.sum())
    return steps * others
