"""The first check: a similarity can be created, and scores a small batch."""

import torch
from torch import Tensor

from clipseq.sequences import Sequences
from clipseq.testing.conformance import Broken, Check, Subject, check_finite
from clipseq.testing.strategies import dense


def forward_and_backward(subject: Subject) -> None:
    similarity = subject.make().eval()
    x, y = (
        dense(batch, steps, subject.features, seed=batch, dtype=torch.float32)
        for batch, steps in ((2, 3), (3, 2))
    )
    subject.example = {"x": Sequences.from_tensor(x), "y": Sequences.from_tensor(y)}
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    scores = similarity(x, y)
    if not isinstance(scores, Tensor):
        raise Broken(f"the scores must be a tensor, got {type(scores).__name__}")
    if scores.shape != (2, 3):
        raise Broken(f"the scores must have the shape (2, 3), got {tuple(scores.shape)}")
    if scores.dtype != torch.float32:
        raise Broken(f"the scores of float32 inputs must be torch.float32, got {scores.dtype}")
    check_finite(scores, "score")
    if not scores.requires_grad:
        raise Broken("no gradient reaches x or y: the scores are detached from both")
    gradients = torch.autograd.grad(scores.sum(), (x, y), allow_unused=True)
    for side, gradient in zip("xy", gradients, strict=True):
        if gradient is None:
            raise Broken(f"no gradient reaches {side}: the scores are detached from it")
        check_finite(gradient, f"the gradient of {side}")


FIRST = Check(
    "forward_and_backward",
    "it can be created, and gives finite (B, C) scores with a gradient to x and y",
    forward_and_backward,
    "`__init__`: call super().__init__ first, and give every option a default; `score`: return a "
    "tensor (b, c), not transposed or detached, without .item(), torch.no_grad() or a division "
    "by zero on the way",
)
"""The first check; if it fails, failures of the others mean little."""
