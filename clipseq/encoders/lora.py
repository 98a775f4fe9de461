"""Low-rank adapters of a pretrained text tower (LoRA), through peft."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clipseq.encoders.config import Lora

_BASE, _ADAPTERS = ".base_layer.", (".lora_A.default.weight", ".lora_B.default.weight")
"""Parts of the names that peft gives to the weights of an adapted layer."""


def add_adapters(model: Any, config: Lora) -> None:
    """Put adapters into the linear layers of `model`, and train only these.

    Their product starts at zero, so that the model computes the same as before.

    Raises:
        ImportError: peft is not installed.
        ValueError: `model` has no layer with a name of `config.targets`.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError("TextConfig(lora=...) needs peft: pip install 'clipseq[lora]'")
    import peft

    # A pooler is not used, so its adapter would never be trained.
    pooler = any("pooler" in name for name, _ in model.named_modules())
    alpha: Any = config.alpha  # peft says int, and takes any number
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        exclude_modules=r".*pooler.*" if pooler else None,
        fan_in_fan_out=any(map(_is_transposed, model.modules())),
    )
    try:
        peft.inject_adapter_in_model(options, model)
    except ValueError as error:
        raise ValueError(
            f"lora.targets must be ends of the names of layers, got {list(config.targets)}: {error}"
        ) from error


def merge_adapters(
    model: nn.Module, config: Lora, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights of the model without adapters that computes the same as this one.

    Args:
        model: the model with adapters.
        config: the adapters.
        state: its weights.
    """
    merged = {}
    for name, value in state.items():
        if name.endswith(_ADAPTERS):
            continue
        layer = name.rpartition(_BASE)[0]
        if layer and name == f"{layer}{_BASE}weight":
            down, up = (state[layer + adapter] for adapter in _ADAPTERS)
            change = (config.alpha / config.rank) * (up.double() @ down.double())
            base: Any = model.get_submodule(layer)
            if _is_transposed(base.get_base_layer()):
                change = change.T
            value = (value.double() + change).to(value.dtype)
        merged[name.replace(_BASE, ".")] = value
    return merged


def _is_transposed(layer: nn.Module) -> bool:
    """Return True for the linear layers of GPT-2, whose weights are (in, out)."""
    return type(layer).__name__ == "Conv1D"
