"""What an author hears of before anything else: it runs at all."""

import torch
from torch import Tensor

from clipseq.sequences import Sequences
from clipseq.testing.conformance import Broken, Check, Subject, finite
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
        raise Broken(f"a call gives a {type(scores).__name__}, not a tensor")
    if scores.shape != (2, 3):
        raise Broken(f"the scores have the shape {tuple(scores.shape)}, not (2, 3)")
    if scores.dtype != torch.float32:
        raise Broken(f"the scores of float32 inputs are {scores.dtype}")
    finite(scores, "score")
    if not scores.requires_grad:
        raise Broken("no gradient reaches x or y: the scores are detached from both")
    gradients = torch.autograd.grad(scores.sum(), (x, y), allow_unused=True)
    for side, gradient in zip("xy", gradients, strict=True):
        if gradient is None:
            raise Broken(f"no gradient reaches {side}: the scores are detached from it")
        finite(gradient, f"the gradient of {side}")


FIRST = Check(
    "forward_and_backward",
    "it can be made, and scores a small batch: finite (B, C) scores, with a gradient to x and y",
    forward_and_backward,
    "`__init__`: super().__init__ first, a default for every option; `score`: a tensor (b, c), not "
    "transposed or detached, no .item() or torch.no_grad() on the way, no division by zero",
)
"""The check that the others come after."""
