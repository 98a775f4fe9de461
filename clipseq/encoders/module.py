"""Any nn.Module that returns Sequences, as a tower."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipseq.encoders.radar import frame_mask
from clipseq.sequences import Sequences


class ModuleTower(nn.Module):
    """Wraps a module of the user's own; its parameters are trained with the rest.

    The module is called with the batch's radar (or text) as it is; where lengths or a mask came
    along, with a second argument ``mask=`` (B, T) bool. It returns `Sequences`, whose masked mean
    is then the pooled feature; or a pair (pooled (B, D), `Sequences`).

    Args:
        module: the user's module.
        width: the D that it has to return.
        side: "radar" or "text", for error texts.
    """

    def __init__(self, module: nn.Module, *, width: int, side: str):
        super().__init__()
        self.module = module
        self.width = width
        self.side = side

    def forward(
        self,
        values: Any,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        sequences: bool = True,
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Call the module and check what it returns.

        Raises:
            TypeError: it returned neither `Sequences` nor a pair of a tensor and `Sequences`.
            ValueError: shapes that do not fit one another, the batch or D; an item without a
                real step where the mean is needed; lengths for a batch that is no tensor.
        """
        if lengths is not None:
            mask = frame_mask(_tensors(values), lengths, mask)
        output = self.module(values) if mask is None else self.module(values, mask=mask)
        name = f"the {self.side} tower {type(self.module).__name__}"
        if isinstance(output, Sequences):
            self._check(output, name)
            if not bool(output.mask.any(1).all()):
                item = int((~output.mask.any(1)).nonzero()[0])
                raise ValueError(f"{name} returned no real step for item {item}")
            tokens = Sequences.from_tensor(*output)
            return tokens.values.sum(1) / tokens.lengths[:, None], tokens if sequences else None
        if not (
            isinstance(output, tuple)
            and len(output) == 2
            and isinstance(output[0], Tensor)
            and isinstance(output[1], Sequences)
        ):
            raise TypeError(
                f"{name} must return clipseq.Sequences, or a pair (pooled, Sequences); "
                f"got {type(output).__name__}"
            )
        pooled, tokens = output
        self._check(tokens, name)
        if pooled.shape != (len(tokens.values), self.width):
            raise ValueError(
                f"{name} must return pooled features {(len(tokens.values), self.width)}, (B, D), "
                f"got {tuple(pooled.shape)}"
            )
        return pooled, Sequences.from_tensor(*tokens) if sequences else None

    def views(self, values: Any) -> dict[str, Tensor]:
        """What of the input can be looked at for NaN: floating point tensors, by their names."""
        named = values if isinstance(values, Mapping) else {self.side: values}
        return {
            str(name): value
            for name, value in named.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2
        }

    def _check(self, tokens: Sequences, name: str) -> None:
        shape = tuple(tokens.values.shape)
        if len(shape) != 3 or shape[2] != self.width:
            raise ValueError(
                f"{name} must return values (B, T, {self.width}), D being transformer_width; "
                f"got {shape}"
            )
        if tokens.mask.shape != shape[:2] or tokens.mask.dtype != torch.bool:
            raise ValueError(
                f"{name} must return a bool mask {shape[:2]}, "
                f"got {tokens.mask.dtype} {tuple(tokens.mask.shape)}"
            )


def _tensors(values: Any) -> Mapping[str, Tensor]:
    if isinstance(values, Tensor):
        return {"radar": values}
    if isinstance(values, Mapping) and values:
        return values
    raise ValueError(
        f"radar_lengths needs radar to be a tensor or a dictionary of them, "
        f"got {type(values).__name__}: give radar_mask instead"
    )
