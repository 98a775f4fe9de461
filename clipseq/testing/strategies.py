"""Hypothesis strategies for batches of sequences."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from clipseq.sequences import Sequences

Size = int | tuple[int, int]
"""A number, or the smallest and largest number to draw."""
Kind = Literal["dense", "basis", "zero", "repeat", "opposite"]

DENSE: tuple[Kind, ...] = ("dense",)
"""Kinds of steps without ties, for promises about gradients."""
TAME: tuple[Kind, ...] = ("dense", "basis", "zero", "repeat")
"""Kinds of steps whose sums do not cancel.

Their scores do not depend on the order in which steps are added, except for rounding. If steps
cancel, a pooled vector is rounding noise, and so is its cosine.
"""
WILD: tuple[Kind, ...] = (*TAME, "opposite")
"""All kinds of steps, for promises that hold whatever the values are."""


def sequences(
    *,
    batch: Size = (1, 3),
    steps: Size = (1, 5),
    features: Size = (1, 4),
    kinds: Sequence[Kind] = TAME,
    masks: Literal["any", "prefix", "full"] = "any",
    empty: bool = False,
    scales: Sequence[float] = (1.0,),
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[Sequences]:
    """Generate batches of sequences; examples shrink to one sequence of one real step.

    Args:
        batch: B.
        steps: T.
        features: D.
        kinds: the kinds of steps to draw: "dense" (random numbers, all steps different), "basis" (a
            unit vector along an axis), "zero", "repeat" (a copy of the previous step), "opposite"
            (the negative of the previous step). Except for the opposite ones, all steps of a
            sequence lie on the same side of a plane; half of the sequences lie on the other side.
        masks: "any" for padding anywhere, "prefix" for padding at the end only, "full" for no
            padding.
        empty: whether a sequence may have no real step.
        scales: factors; each sequence is multiplied by one of them.
        dtype: dtype of the values. Padded steps are zero.
    """

    @st.composite
    def draw_sequences(draw: Any) -> Sequences:
        return _draw(draw, batch, steps, features, kinds, masks, empty, scales, dtype)

    return draw_sequences()


def sequence_pairs(
    *,
    batch: Size = (1, 3),
    steps: Size = (1, 5),
    y_batch: Size | None = None,
    y_steps: Size | None = None,
    features: Size = (1, 4),
    related: bool = True,
    matched: bool = False,
    kinds: Sequence[Kind] = TAME,
    masks: Literal["any", "prefix", "full"] = "any",
    empty: bool = False,
    scales: Sequence[float] = (1.0,),
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[tuple[Sequences, Sequences]]:
    """Generate pairs of batches x and y with the same D; see `sequences`.

    Args:
        y_batch: C. None: drawn from `batch`.
        y_steps: L. None: drawn from `steps`.
        related: whether y may also be x itself, or the negative of x.
        matched: whether C equals B, whatever `y_batch` is.
    """
    alone = y_batch is not None or y_steps is not None or not related

    @st.composite
    def draw_pair(draw: Any) -> tuple[Sequences, Sequences]:
        d = _number(draw, features)

        def side(b: Size, t: Size) -> Sequences:
            return _draw(draw, b, t, d, kinds, masks, empty, scales, dtype)

        x = side(batch, steps)
        relation = "other" if alone else draw(st.sampled_from(("other", "same", "opposite")))
        if relation == "same":
            return x, Sequences(x.values.clone(), x.mask.clone())
        if relation == "opposite":
            return x, Sequences(-x.values, x.mask.clone())
        others = len(x.values) if matched else batch if y_batch is None else y_batch
        return x, side(others, steps if y_steps is None else y_steps)

    return draw_pair()


def _draw(
    draw: Any,
    batch: Size,
    steps: Size,
    features: Size,
    kinds: Any,  # not Sequence[...]: a type checker at run time samples those with `random`,
    masks: str,
    empty: bool,
    scales: Any,  # which hypothesis does not allow while it draws
    dtype: torch.dtype,
) -> Sequences:
    b, t, d = _number(draw, batch), _number(draw, steps), _number(draw, features)
    mask = torch.stack([_mask(draw, t, masks, empty) for _ in range(b)])
    values = torch.empty(b, t, d, dtype=torch.float64)
    # On one side of the plane through 0 whose normal is the first axis.
    plain = dense(b, t, d, seed=draw(st.integers(0, 999)))
    for i in range(b):
        row = draw(st.lists(st.sampled_from(kinds), min_size=t, max_size=t))
        for k, kind in enumerate(row):
            before = values[i, k - 1] if k else plain[i, 0]
            if kind == "dense":
                values[i, k] = plain[i, k]
            elif kind == "basis":
                values[i, k] = torch.eye(d, dtype=torch.float64)[draw(st.integers(0, d - 1))]
            elif kind == "zero":
                values[i, k] = 0
            else:
                values[i, k] = before if kind == "repeat" else -before
        values[i] *= draw(st.sampled_from((1.0, -1.0))) * draw(st.sampled_from(list(scales)))
    return Sequences.from_tensor(values.to(dtype), mask)


def _number(draw: Any, size: Size) -> int:
    return size if isinstance(size, int) else draw(st.integers(*size))


def _mask(draw: Any, steps: int, masks: str, empty: bool) -> Tensor:
    if masks == "full":
        return torch.ones(steps, dtype=torch.bool)
    if masks == "prefix":
        padded = draw(st.integers(0, steps if empty else steps - 1))
        return torch.arange(steps) < steps - padded
    # True is drawn for padding, so that an example shrinks to one without padding.
    row = ~torch.tensor(draw(st.lists(st.booleans(), min_size=steps, max_size=steps)))
    if not empty and not bool(row.any()):
        row[0] = True
    return row


def dense(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random numbers, the same in every run, with a first feature of at least 1."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    values[..., 0] = values[..., 0].abs() + 1
    return values.to(dtype)
