"""Devices that lack float64."""

import torch

_WITHOUT_FLOAT64 = ("mps",)


def has_float64(device: torch.device) -> bool:
    """Return True if tensors on `device` may be float64; False on Apple's GPUs (``mps``)."""
    return device.type not in _WITHOUT_FLOAT64


def exact_on(device: torch.device) -> torch.device:
    """Return the device that computes in float64 on behalf of `device`: itself, or the CPU."""
    return device if has_float64(device) else torch.device("cpu")
