"""Kernels are used where they should be, and the halves that they multiply keep the precision."""

import sys
from types import ModuleType

import pytest
import torch

from clipseq.engine import halves, kernels, obstacle, terms, use_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("CLIPSEQ_TRITON", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernels._without_triton.cache_clear()
    yield
    kernels._without_triton.cache_clear()


@pytest.fixture
def installed(monkeypatch):
    """Pretend that there is a GPU, with a given version of Triton or without Triton."""

    def install(version, capability=(9, 0)):
        module = ModuleType("triton")
        module.__version__ = version
        monkeypatch.setitem(sys.modules, "triton", module if version else None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return install


def test_a_gpu_with_triton_is_used(installed):
    installed("3.7.1")
    assert obstacle(GPU) is None


def test_a_cpu_is_torchs_unless_a_test_wants_the_interpreter(installed, monkeypatch):
    installed("3.7.1")
    assert obstacle(CPU) == "not a CUDA device"
    assert not use_kernels(torch.zeros(2))
    monkeypatch.setenv("CLIPSEQ_TRITON", "1")
    assert obstacle(CPU) == "not a CUDA device"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert use_kernels(torch.zeros(2))
    assert obstacle(torch.device("mps")) == "not a CUDA device"


def test_torch_computes_what_kernels_cannot(installed, monkeypatch):
    installed(None)
    assert obstacle(GPU).startswith("triton cannot be imported: ")
    kernels._without_triton.cache_clear()
    installed("3.5.1")
    assert obstacle(GPU) == "triton 3.5.1 is older than 3.6"
    kernels._without_triton.cache_clear()
    installed("3.10.0+git", capability=(7, 5))
    assert obstacle(GPU) == "compute capability 7.5 is below 8.0"
    installed("3.10.0+git")
    assert obstacle(GPU) is None
    assert obstacle(GPU, torch.float64) == "torch.float64 instead of torch.float32"
    monkeypatch.setenv("CLIPSEQ_TRITON", "0")
    assert obstacle(GPU) == "CLIPSEQ_TRITON=0"


def test_two_halves_are_as_good_as_float32():
    values = torch.nn.functional.normalize(torch.randn(3, 50, 70), dim=2)
    values[0, 0] = torch.eye(70)[3]
    values[0, 1, :2] = torch.tensor([1e-6, -1e-9])
    high, low = halves(values)
    assert high.shape == low.shape == (3, 50, 96)
    assert high.dtype == low.dtype == torch.float16
    both = high.double() + low.double()
    assert (both[..., :70] - values).abs().max() <= 2**-25
    assert not both[..., 70:].any()


def test_one_product_where_torch_may_use_tf32():
    assert terms() == 3
    torch.set_float32_matmul_precision("high")
    try:
        assert terms() == 1
    finally:
        torch.set_float32_matmul_precision("highest")
