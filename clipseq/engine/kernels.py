"""The choice between Triton kernels and torch, and the numbers that the kernels multiply.

Products of unit vectors need more digits than one multiplication on tensor cores keeps. Every
entry v is therefore passed as two half-precision numbers, ``v = high + low`` to within 2⁻²⁵
(the range of half precision loses nothing where v is at most 1). The product ``⟨x, y⟩`` is then the
sum of three products, in float32: high·high + high·low + low·high. Tensor cores truncate digits
when they add, so a cosine is off by about 10⁻⁶; apart from that, the sum is as close to float64 as
a float32 product, at the rate of half precision. Triton's ``input_precision="tf32x3"`` splits
numbers again in every block and multiplies at half that rate, and ``"ieee"`` leaves the tensor
cores idle. If torch may use TF32 (``torch.set_float32_matmul_precision("high")``), only high·high
is computed: it has the 11 bits of a TF32 product.

Inputs in bfloat16 get the same precision: their steps arrive here normalised in float32, and
rounding unit vectors to bfloat16 again would leave 8 bits of each entry. Only the TF32 setting
trades digits for speed, whatever the dtype of the inputs.
"""

import os
from functools import cache
from importlib import import_module

import torch
from jaxtyping import Float
from torch import Tensor, nn

FEATURES = 32
"""`halves` pads features to a multiple of this number, so that no kernel has to mask them."""


def obstacle(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Return the reason why Triton kernels do not run on `device`, or None if they do.

    ``CLIPSEQ_TRITON=0`` leaves everything to torch. With ``CLIPSEQ_TRITON=1``, the kernels also run
    on the CPU, in Triton's interpreter, if ``TRITON_INTERPRET=1`` was set before Triton was first
    imported. The interpreter is slow and meant for tests.
    """
    wish = os.environ.get("CLIPSEQ_TRITON", "")
    if wish == "0":
        return "CLIPSEQ_TRITON=0"
    if dtype != torch.float32:
        return f"{dtype} instead of torch.float32"
    interpreted = wish == "1" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not (device.type == "cpu" and interpreted):
        return "not a CUDA device"
    if device.type == "cuda":
        if torch.version.hip:
            return "not tested on ROCm"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"compute capability {major}.{minor} is below 8.0"
    return _without_triton()


def use_kernels(values: Tensor) -> bool:
    """Return True if Triton kernels compute with `values`, and False if torch does."""
    return obstacle(values.device, values.dtype) is None


def halves(values: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor]:
    """Return the high and low halves of unit vectors, (B, T, D') each.

    D' is D rounded up to a multiple of `FEATURES`; the added features are zero.
    """
    missing = -values.shape[2] % FEATURES
    if missing:
        values = nn.functional.pad(values, (0, missing))
    high = values.half()
    return high.contiguous(), (values - high).half().contiguous()


def terms() -> int:
    """Return the number of products that make up ⟨x, y⟩: 3, or 1 if torch may use TF32."""
    matmul = torch.backends.cuda.matmul
    # Once the newer setting has been touched, torch refuses to read the older one.
    if hasattr(matmul, "fp32_precision"):
        return 1 if matmul.fp32_precision == "tf32" else 3
    return 1 if matmul.allow_tf32 else 3


@cache
def _without_triton() -> str | None:
    try:
        version = import_module("triton").__version__
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if tuple(int(number) for number in version.split(".")[:2]) < _OLDEST:
        return f"triton {version} is older than {'.'.join(map(str, _OLDEST))}"
    return None


_OLDEST = (3, 6)
"""Oldest release of Triton that compiles the kernels."""
