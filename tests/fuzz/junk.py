"""Strategies of values that are wrong: of any kind, or a right value with one thing changed."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

NESTED = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)

ANYTHING: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2**70": lambda: 2**70,
    "-(2**70)": lambda: -(2**70),
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "1e400": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "nan": lambda: float("nan"),
    "1j": lambda: 1j,
    "''": lambda: "",
    "text": lambda: "nonsense",
    "number in a string": lambda: "3",
    "half a surrogate": lambda: "\ud800",
    "NUL": lambda: "a\0b",
    "long text": lambda: "x" * 5000,
    "bytes": lambda: b"bytes",
    "[]": list,
    "[None]": lambda: [None],
    "nested lists": lambda: [[1], [2, 3]],
    "()": lambda: (),
    "{}": dict,
    "{1: 2}": lambda: {1: 2},
    "set": lambda: {"a"},
    "object": object,
    "class": lambda: int,
    "function": lambda: len,
    "generator": lambda: (value for value in [1]),
    "namespace": lambda: SimpleNamespace(dtype="f", shape=(1,)),
    "path": lambda: Path("nothing/here"),
    "NumPy NaN": lambda: np.float32("nan"),
    "NumPy bool": lambda: np.True_,
    "array": lambda: np.ones(2),
    "array of objects": lambda: np.array([None, "a"], dtype=object),
    "tensor of one": lambda: torch.tensor(1.0),
    "tensor of two": lambda: torch.ones(2),
    "integer tensor": lambda: torch.ones(2, 3, 4, dtype=torch.int64),
    "meta tensor": lambda: torch.ones(2, 3, 4, device="meta"),
    "sparse tensor": lambda: torch.ones(2, 3, 4).to_sparse(),
    "nested tensor": lambda: NESTED,
    "complex tensor": lambda: torch.ones(2, 3, 4, dtype=torch.complex64),
    "module": lambda: torch.nn.Linear(2, 2),
}
"""Values by a name that says what they are; each is made anew, since a call may change it."""


def sparse_rows(values: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them beta
        return values.to_sparse_csr() if values.ndim == 2 else values.to_sparse()


HUGE = ("2**70", "1e400")

TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "float16": lambda t: t.half(),
    "float64": lambda t: t.double(),
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.bool(),
    "array": lambda t: t.detach().numpy(),
    "list": lambda t: t.tolist(),
    "without the first axis": lambda t: t[0] if t.ndim else t,
    "with another axis": lambda t: t[None],
    "without the last item": lambda t: t[:-1] if t.ndim else t,
    "without items": lambda t: t[:0] if t.ndim else t,
    "without the last column": lambda t: t[..., :-1] if t.ndim else t,
    "without columns": lambda t: t[..., :0] if t.ndim else t,
    "transposed": lambda t: t.transpose(0, -1) if t.ndim else t,
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: sparse_rows(t),
    "meta": lambda t: t.to("meta"),
    "nested": lambda t: NESTED,
    "NaN": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else -t.long(),
    "infinite": lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else t.float(),
    "huge": lambda t: torch.full_like(t, 1e38) if t.is_floating_point() else t.long() + 2**40,
    "expanded": lambda t: t[:1].expand(t.shape) if t.ndim else t,
}
"""Changes of a right tensor."""


def anything(*, huge: bool = True) -> st.SearchStrategy[tuple[str, Any]]:
    """Draw (name, value) of any kind; `huge` includes counts that nothing could hold."""
    names = [name for name in ANYTHING if huge or name not in HUGE]
    return st.sampled_from(names).map(lambda name: (name, ANYTHING[name]()))


def changed(value: Any, *, huge: bool = True) -> st.SearchStrategy[tuple[str, Any]]:
    """Draw (name, value) with one thing in a right `value` changed, by its type."""
    if isinstance(value, Tensor) and not value.is_nested:
        names = st.sampled_from(sorted(TENSORS))
        return names.map(lambda name: (name, TENSORS[name](value)))
    if isinstance(value, np.ndarray) and value.dtype != object:
        return st.sampled_from(
            [
                ("without the last row", value[:-1]),
                ("without rows", value[:0]),
                ("without columns", value[..., :0]),
                ("flat", value.ravel()),
                ("with another axis", value[None]),
                ("list", value.tolist()),
                ("text", value.astype(str)),
                ("objects", value.astype(object)),
                ("complex", value.astype(complex)),
                ("NaN", np.full(value.shape, np.nan)),
                ("integers", value.astype(int)),
                ("tensor", torch.from_numpy(value.copy())),
            ]
        )
    if isinstance(value, str):
        return st.sampled_from(
            [("misspelt", value[:-1]), ("upper case", value.upper()), ("padded", value + " ")]
        )
    if isinstance(value, Mapping) and value:
        return _changed_mapping(dict(value), huge)
    if isinstance(value, list | tuple) and value and not hasattr(value, "_fields"):
        return _changed_list(list(value), type(value), huge)
    return anything(huge=huge)


def _changed_mapping(value: dict[Any, Any], huge: bool) -> st.SearchStrategy[tuple[str, Any]]:
    keys = st.sampled_from(sorted(value, key=str))

    def replaced(key: Any) -> st.SearchStrategy[tuple[str, Any]]:
        inner = st.one_of(anything(huge=huge), changed(value[key], huge=huge))
        return inner.map(lambda drawn: (f"[{key!r}] = {drawn[0]}", {**value, key: drawn[1]}))

    return st.one_of(
        keys.flatmap(replaced),
        keys.map(lambda key: (f"without {key!r}", {k: v for k, v in value.items() if k != key})),
        anything().map(lambda drawn: (f"extra = {drawn[0]}", {**value, "extra": drawn[1]})),
    )


def _changed_list(value: list[Any], kind: type, huge: bool) -> st.SearchStrategy[tuple[str, Any]]:
    def replaced(place: int) -> st.SearchStrategy[tuple[str, Any]]:
        inner = st.one_of(anything(huge=huge), changed(value[place], huge=huge))
        return inner.map(
            lambda drawn: (
                f"[{place}] = {drawn[0]}",
                kind([*value[:place], drawn[1], *value[place + 1 :]]),
            )
        )

    return st.one_of(
        st.integers(0, len(value) - 1).flatmap(replaced),
        st.sampled_from(
            [
                ("without the last", kind(value[:-1])),
                ("doubled", kind([*value, *value])),
                ("set", frozenset(map(str, value))),
            ]
        ),
    )
