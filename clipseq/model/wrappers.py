"""Names of weights and classes of modules, without the wrappers that torch.compile adds."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from clipseq.errors import CheckpointError

COMPILED = "_orig_mod"
"""The name under which torch.compile keeps the module that it wraps."""


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile has wrapped, or `module` itself."""
    while isinstance(inner := module._modules.get(COMPILED), nn.Module):
        module = inner
    return module


def plain_name(name: str) -> str:
    """Return the name of a weight as it would be without torch.compile."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def plain_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with plain names.

    Raises:
        CheckpointError: two weights have the same plain name.
    """
    plain = {plain_name(name): value for name, value in state.items()}
    if len(plain) != len(state):
        names = [plain_name(name) for name in state]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise CheckpointError(
            f"the names of weights must differ without {COMPILED!r}, got {', '.join(twice)} twice"
        )
    return plain
