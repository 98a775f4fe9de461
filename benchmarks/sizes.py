"""The sizes that are measured, and batches of these sizes."""

from typing import NamedTuple

import torch
from torch import Tensor

FEATURES = 256

PADDINGS = ("full", "ragged")
"""Paddings: all steps are real, or lengths are drawn uniformly from 1 to the longest."""


class Size(NamedTuple):
    """A size: B sequences with T steps against C with L."""

    b: int
    c: int
    t: int
    length: int

    @property
    def cells(self) -> int:
        """Number of cells, B·C·T·L."""
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
"""In S, batch and lengths grow together; in M, only the batch does, with the lengths of S1."""


def named(names: str) -> list[str]:
    """Return the sizes named in a comma-separated list; M stands for the whole series M64 to M512.

    Raises:
        ValueError: a size does not exist.
    """
    found: list[str] = []
    for name in names.split(","):
        series = [size for size in SIZES if name == "M" and size.startswith("M")]
        if not series and name not in SIZES:
            raise ValueError(
                f"sizes must be among {', '.join(SIZES)} and M for all M's, got {name!r}"
            )
        found += series or [name]
    return found


class Batch(NamedTuple):
    """The arguments of a similarity."""

    x: Tensor
    y: Tensor
    x_mask: Tensor | None
    y_mask: Tensor | None


def batch(size: Size, padding: str, features: int = FEATURES) -> Batch:
    """Return random sequences that require gradients, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.b, size.t, features, generator=generator)
    y = torch.randn(size.c, size.length, features, generator=generator)
    for side in (x, y):
        # The gradients of the inputs belong to the caller, as do the inputs.
        side.requires_grad_().grad = torch.zeros_like(side)
    if padding == "full":
        return Batch(x, y, None, None)

    def mask(count: int, steps: int) -> Tensor:
        lengths = torch.randint(1, steps + 1, (count, 1), generator=generator)
        return torch.arange(steps) < lengths

    return Batch(x, y, mask(size.b, size.t), mask(size.c, size.length))


def real_cells(inputs: Batch) -> int:
    """Return the number of cells in which both steps are real, which every method must compute."""
    x, y, x_mask, y_mask = inputs
    steps = x.shape[0] * x.shape[1] if x_mask is None else int(x_mask.sum())
    others = y.shape[0] * y.shape[1] if y_mask is None else int(y_mask.sum())
    return steps * others
