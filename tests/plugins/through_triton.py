"""Operators computed by Triton kernels, in a process of its own.

Triton reads at its first import whether to interpret, and torch may have imported it already. On
a machine with a GPU the kernels are compiled and run there; elsewhere Triton interprets them.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()

OPERATORS = {"attention": "attention_scores", "local": "maxima", "temporal": "temporal_scores"}


def computed(folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, tuple[Tensor, ...]]:
    """Scores, and gradients of ``(scores * case["weights"]).sum()``, of each case.

    To x, y and those options that are tensors. A case holds `similarity` ("attention", "local" or
    "temporal"), `x`, `y`, `x_lengths`, `y_lengths`, `weights`, `options` of the operator and,
    where they are not the kernels' own, their `WORKSPACE` and `FEW`.
    """
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    torch.save(cases, folder / "cases")
    environment = os.environ | {"CLIPSEQ_TRITON": "1", "OMP_NUM_THREADS": "1"}
    if not ON_GPU:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, tuple[Tensor, ...]] = torch.load(folder / "results")
    return found


def _compute(case: dict[str, Any]) -> tuple[Tensor, ...]:
    from importlib import import_module

    package = f"clipseq_{case['similarity']}"
    kernels = import_module(f"{package}.triton_kernels")
    scores = import_module(f"{package}.scores")
    calls, functions = [0, 0], (kernels.forward, kernels.backward)
    usual = {name: getattr(kernels, name) for name in ("WORKSPACE", "FEW") if name in case}

    def counting(which: int) -> Any:
        def call(*arguments: Any) -> Any:
            calls[which] += 1
            return functions[which](*arguments)

        return call

    kernels.forward, kernels.backward = counting(0), counting(1)
    for name in usual:
        setattr(kernels, name, case[name])
    device = "cuda" if ON_GPU else "cpu"
    names = ("x", "y", "x_lengths", "y_lengths", "weights")
    x, y, x_lengths, y_lengths, weights = (case[name].to(device) for name in names)
    x, y = x.requires_grad_(), y.requires_grad_()
    torch.backends.cuda.matmul.fp32_precision = case.get("precision", "ieee")
    options = [
        option.to(device).requires_grad_() if isinstance(option, Tensor) else option
        for option in case["options"]
    ]
    operator = getattr(scores, OPERATORS[case["similarity"]])
    result = operator(x, y, x_lengths, y_lengths, *options)
    result = result[0] if case["similarity"] == "local" else result
    wanted = [x, y, *(option for option in options if isinstance(option, Tensor))]
    gradients = torch.autograd.grad((result * weights).sum(), wanted)
    kernels.forward, kernels.backward = functions
    for name, value in usual.items():
        setattr(kernels, name, value)
    assert min(calls) > 0, "torch computed it"
    return result.detach().cpu(), *(gradient.cpu() for gradient in gradients)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    cases = torch.load(folder / "cases")
    torch.save({name: _compute(case) for name, case in cases.items()}, folder / "results")
