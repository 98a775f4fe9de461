"""Hypothesis strategies for batches of sequences."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from clipseq.sequences import Sequences

Size = int | tuple[int, int]
"""A number, or the least and the most of it."""
Kind = Literal["dense", "basis", "zero", "repeat", "opposite"]

DENSE: tuple[Kind, ...] = ("dense",)
"""Steps among which there are no ties: for promises about gradients."""
TAME: tuple[Kind, ...] = ("dense", "basis", "zero", "repeat")
"""Steps whose sums never cancel: scores of these are the same up to rounding however a sum over
steps is ordered. Where they do cancel, a pooled vector is rounding noise, and so is its cosine."""
WILD: tuple[Kind, ...] = (*TAME, "opposite")
"""Steps of all kinds: for promises that hold whatever the values are."""


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
    """Batches of sequences; shrinks to one sequence of one real step.

    Args:
        batch: B.
        steps: T.
        features: D.
        kinds: what a step may be: "dense" (numbers without pattern, no two steps alike), "basis"
            (a unit vector along an axis), "zero", "repeat" (the step before it once more),
            "opposite" (the negative of the step before it). All steps of a sequence but the
            opposite ones lie on one side of a plane, half of the sequences on the other side.
        masks: "any": padding anywhere; "prefix": at the end only; "full": none.
        empty: whether a sequence may be without a real step.
        scales: each sequence is multiplied by one of these.
        dtype: of the values. Padded steps are zero.
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
    """x and y with the same D; see `sequences`.

    Args:
        y_batch: C; None: as `batch`.
        y_steps: L; None: as `steps`.
        related: y may also be x itself, or the opposite of x.
        matched: C = B, whatever `y_batch` is.
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
    kinds: Any,  # no Sequence[...]: a type checker at run time samples those with `random`,
    masks: str,
    empty: bool,
    scales: Any,  # which hypothesis does not allow while it draws
    dtype: torch.dtype,
) -> Sequences:
    b, t, d = _number(draw, batch), _number(draw, steps), _number(draw, features)
    mask = torch.stack([_mask(draw, t, masks, empty) for _ in range(b)])
    values = torch.empty(b, t, d, dtype=torch.float64)
    # On one side of the plane through 0 that the first axis is normal to.
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
    # Drawn as "is padding", so that an example shrinks to one without padding.
    row = ~torch.tensor(draw(st.lists(st.booleans(), min_size=steps, max_size=steps)))
    if not empty and not bool(row.any()):
        row[0] = True
    return row


def dense(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers without pattern, the same in every run, the first feature at least 1."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    values[..., 0] = values[..., 0].abs() + 1
    return values.to(dtype)
