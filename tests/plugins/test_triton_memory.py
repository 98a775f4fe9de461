"""The kernels' launchers allocate little memory at a large size, and never read a value."""

from importlib import import_module

import pytest
import torch

from clipseq.testing import peak_of_kernels

GRADIENT_KERNELS = {"attention": "_to_keys", "local": "_gradient", "temporal": "_gradient"}


def launch(similarity, batch):
    kernels = import_module(f"clipseq_{similarity}.triton_kernels")
    x, y = torch.empty(batch, 248, 256), torch.empty(batch, 77, 256)
    lengths = torch.empty(batch, dtype=torch.long), torch.empty(batch, dtype=torch.long)
    grad = torch.empty(batch, batch)
    if similarity == "attention":
        x, y = (side.unflatten(2, (8, 32)).transpose(1, 2) for side in (x, y))
        inputs = x, y, *lengths, torch.empty(())
        kernels.backward(grad, kernels.forward(*inputs), *inputs)
    elif similarity == "local":
        _, *places = kernels.forward(x, y, *lengths, False, 1)
        kernels.backward(grad, x, y, *lengths, 1, *places)
    else:
        inputs = x, y, *lengths, 0.1, 0.2
        kernels.backward(grad, kernels.forward(*inputs), *inputs)


def allocated(similarity, batch):
    pytest.importorskip("triton", reason="the kernels cannot be imported without triton")
    peak, kernels = peak_of_kernels(launch, similarity, batch)
    assert GRADIENT_KERNELS[similarity] in kernels
    return peak


@pytest.mark.parametrize("similarity", ["attention", "local", "temporal"])
def test_there_is_one_workspace(similarity):
    # It takes 512 MiB at most, in addition to inputs of 41 MiB, their halves and gradients.
    assert allocated(similarity, 128) <= 2**29 + 2**27


@pytest.mark.parametrize("similarity", ["attention", "local", "temporal"])
def test_a_batch_of_1024_takes_less_than_2_gib(similarity):
    # The inputs take 0.32 GiB, and their unit steps, which callers of the operators hold, as much
    # again; all cells would take 73 GiB.
    assert allocated(similarity, 1024) <= 2 * 2**30
