"""Whether Triton kernels compute in torch's place, and what they multiply.

Products of unit vectors need more digits than one multiplication on tensor cores keeps. So every
entry v is handed over as two of half precision, ``v = high + low`` to within 2⁻²⁵ (nothing is
lost to the range of half precision where v is at most 1), and ``⟨x, y⟩`` is three products, summed
in float32: high·high + high·low + low·high. That is as near to float64 as float32's own product
(but for what tensor cores cut off where they add, and float32 rounds: some 10⁻⁶ of a cosine), at
the rate of half precision, where Triton's ``input_precision="tf32x3"`` splits in every block anew
and multiplies at half that rate, and ``"ieee"`` leaves the tensor cores idle. Where torch may use
TF32 (``torch.set_float32_matmul_precision("high")``), high·high alone is computed: it has the 11
bits of a TF32 product.

Callers in bfloat16 get the same: their steps come here normalised in float32, and to round unit
vectors to bfloat16 again would leave 8 bits of each. Speed at the price of digits is the above
setting's to give, whatever the caller's type.
"""

import os
from functools import cache
from importlib import import_module

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["halves", "obstacle", "terms", "use_kernels"]

FEATURES = 32
"""`halves` fills the features up to a multiple of this, so that no kernel has to mask them."""


def obstacle(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why Triton kernels would not compute what lies on `device`; None: they would.

    ``CLIPSEQ_TRITON=0`` leaves it all to torch. ``CLIPSEQ_TRITON=1`` has the kernels compute on
    the CPU too, through Triton's interpreter, where ``TRITON_INTERPRET=1`` was set before its
    first import: for tests, as it is slow.
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
            return "untried on ROCm"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"compute capability {major}.{minor} is below 8.0"
    return _without_triton()


def use_kernels(values: Tensor) -> bool:
    """Whether Triton kernels are to compute with `values`."""
    return obstacle(values.device, values.dtype) is None


def halves(values: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor]:
    """The high and low halves of unit vectors, (B, T, D') each; D' is D filled up with zeros."""
    missing = -values.shape[2] % FEATURES
    if missing:
        values = nn.functional.pad(values, (0, missing))
    high = values.half()
    return high.contiguous(), (values - high).half().contiguous()


def terms() -> int:
    """Of how many products ⟨x, y⟩ is the sum: 3, or 1 where torch may use TF32."""
    matmul = torch.backends.cuda.matmul
    # Once the newer setting was touched, torch refuses to tell the older.
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
"""Releases before it fail to compile the kernels."""
