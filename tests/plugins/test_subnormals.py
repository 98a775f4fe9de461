"""No subnormal number enters or leaves an operation of a similarity, in forward or in backward.

Many processors compute a hundred times as slowly with them.
"""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import clipseq

CASES = [
    ("global", {}),
    ("local", {}),
    ("attention", {}),
    ("attention", {"temperature": 0.03}),
    ("attention", {"temperature": 0.002}),
    ("temporal", {}),
    ("temporal", {"gamma": 0.05}),
    ("temporal", {"gamma": 0.01}),  # log space
    ("temporal", {"gamma": 0.01, "band": 0.2}),
]


ARITHMETIC = {
    *("add", "sub", "mul", "div", "addcmul", "reciprocal", "rsqrt", "sqrt", "exp", "exp2", "log2"),
    *("sum", "mean", "cumsum", "mm", "bmm", "baddbmm", "addbmm", "addmm", "embedding_bag"),
}


class Subnormals(TorchDispatchMode):
    """Counts the operations with a subnormal number among their inputs or results."""

    def __init__(self, operators) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self._operators = operators

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        for operator in self._operators:
            stem = operator.name.replace("::", ".")
            for suffix, function in (("", operator.forward), ("_backward", operator.backward)):
                if name == f"{stem}{suffix}.default":
                    with self:
                        return function(*args)
        # Other operations move numbers, or memory that is not filled yet and may hold anything.
        counted = name.split(".")[1].rstrip("_") in ARITHMETIC
        before = counted and any(map(is_subnormal, tree_leaves(args)))
        out = func(*args, **(kwargs or {}))
        self.seen[name] += before or (counted and any(map(is_subnormal, tree_leaves(out))))
        return out


def is_subnormal(value) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
        return False
    size = value.abs()
    return bool(((size > 0) & (size < torch.finfo(value.dtype).tiny)).any())


def structured(seconds: int) -> tuple[Tensor, Tensor]:
    """Return sequences that are alike for long stretches, as trained towers' are."""
    stretches = torch.nn.functional.normalize(torch.randn(3, 4, 16), dim=2)
    x = stretches.repeat_interleave(seconds, 1) + 0.05 * torch.randn(3, 4 * seconds, 16)
    y = stretches.repeat_interleave(seconds // 2, 1) + 0.05 * torch.randn(3, seconds // 2 * 4, 16)
    return x, y


@pytest.mark.parametrize("kind", ["random", "structured"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_number_is_subnormal(name, options, kind):
    torch.manual_seed(0)
    x, y = (torch.randn(3, 160, 16), torch.randn(3, 90, 16))
    if kind == "structured":
        x, y = structured(30)
    x.requires_grad_()
    y.requires_grad_()
    mask = torch.arange(x.shape[1]) < torch.tensor([[x.shape[1]], [70], [31]])
    similarity = clipseq.get_similarity(name, **options)
    mode = Subnormals(similarity.operators)
    with mode:
        scores = similarity(x, y, mask)
        # The gradients of a confident softmax: some are next to nothing.
        if name == "global":
            grads = torch.linspace(-1, 1, 9).view(3, 3)
        else:
            grads = torch.tensor([[-1.0, 1e-9, 1e-30], [1e-37, -1e-3, 1e-12], [1e-20, 1e-5, -0.1]])
        scores.backward(grads)
    assert sum(mode.seen.values()) == 0, +mode.seen
    assert x.grad.isfinite().all()
    assert x.grad.any()
