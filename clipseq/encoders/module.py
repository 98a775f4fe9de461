"""A tower around a user's module."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipseq.encoders.frames import frame_mask
from clipseq.encoders.inputs import Inputs
from clipseq.encoders.tower import Tower
from clipseq.sequences import Sequences


class ModuleTower(Tower):
    """A tower around a module that returns `Sequences`; its parameters are trained with the rest.

    The module is called with the unchanged values of the batch, and with ``mask=`` (B, T) bool if
    the batch has lengths or a mask. It returns `Sequences`, whose masked mean is then the pooled
    feature, or a pair (pooled (B, D), `Sequences`).

    Args:
        module: the user's module.
        width: the D that the module must return.
        name: the side's name, for batch keys, metrics and error texts.
        signal: True if its input is a signal: maps with time last, which may come with lengths and
            are checked for NaN before each training step. False: text, which is passed on
            unchecked.
    """

    def __init__(self, module: nn.Module, *, width: int, name: str, signal: bool = True):
        super().__init__(name)
        self.module = module
        self.width = width
        self.is_signal = signal

    def read(self, values: Any, *, lengths: Any = None, mask: Tensor | None = None) -> Inputs:
        """Turn lengths into a mask; the module has to check everything else.

        Raises:
            TypeError, ValueError: lengths that do not fit the maps, or come with a batch that is
                not a tensor or a dictionary of them.
        """
        if lengths is not None:
            mask = frame_mask(self._tensors(values), lengths, mask, name=self.name)
        return Inputs(values, mask)

    def encode(
        self, inputs: Inputs, *, sequences: bool
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Call the module and check its output.

        Raises:
            TypeError: the module returned neither `Sequences` nor a pair of a tensor and
                `Sequences`.
            ValueError: shapes that do not fit one another, the batch or D; an item without a
                real step whose mean is needed.
        """
        values, mask = inputs
        output = self.module(values) if mask is None else self.module(values, mask=mask)
        named = f"the {self.name} tower {type(self.module).__name__}"
        if isinstance(output, Sequences):
            self._check(output, named)
            if not bool(output.mask.any(1).all()):
                item = int((~output.mask.any(1)).nonzero()[0])
                raise ValueError(
                    f"{named} must return at least one real step per item, got none for item {item}"
                )
            tokens = Sequences.from_tensor(*output)
            return tokens.values.sum(1) / tokens.lengths[:, None], tokens if sequences else None
        if not (
            isinstance(output, tuple)
            and len(output) == 2
            and isinstance(output[0], Tensor)
            and isinstance(output[1], Sequences)
        ):
            raise TypeError(
                f"{named} must return clipseq.Sequences, or a pair (pooled, Sequences), "
                f"got {type(output).__name__}"
            )
        pooled, tokens = output
        self._check(tokens, named)
        if pooled.shape != (len(tokens.values), self.width):
            raise ValueError(
                f"{named} must return pooled features {(len(tokens.values), self.width)}, (B, D), "
                f"got {tuple(pooled.shape)}"
            )
        return pooled, Sequences.from_tensor(*tokens) if sequences else None

    def maps(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the floating-point tensors of a signal, by their names."""
        if not self.is_signal:
            return {}
        values = inputs.values
        named = values if isinstance(values, Mapping) else {self.name: values}
        return {
            str(name): value
            for name, value in named.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2
        }

    def _tensors(self, values: Any) -> Mapping[str, Tensor]:
        if isinstance(values, Tensor):
            return {self.name: values}
        if isinstance(values, Mapping) and values:
            return values
        raise ValueError(
            f"{self.name} must be a tensor or a dictionary of them where {self.name}_lengths is "
            f"given, got {type(values).__name__}; give {self.name}_mask instead"
        )

    def _check(self, tokens: Sequences, named: str) -> None:
        shape = tuple(tokens.values.shape)
        if len(shape) != 3 or shape[2] != self.width:
            raise ValueError(
                f"{named} must return values (B, T, {self.width}), where D is transformer_width, "
                f"got {shape}"
            )
        if tokens.mask.shape != shape[:2] or tokens.mask.dtype != torch.bool:
            raise ValueError(
                f"{named} must return a bool mask {shape[:2]}, "
                f"got {tokens.mask.dtype} {tuple(tokens.mask.shape)}"
            )
