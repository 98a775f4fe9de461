"""The interface of all towers: read (check) an input once, then encode it."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from clipseq.encoders.inputs import Inputs
from clipseq.sequences import Sequences


class Tower(nn.Module, ABC):
    """One side of a model, which encodes items as one pooled vector and a sequence of tokens each.

    Attributes:
        name: the side's name, used in batch keys, metrics and error texts.
        is_signal: True if its input is a signal, which may come with lengths; False for a text.
        tokenizer: the tokenizer of a text tower; None in every other tower.
        truncated: number of captions that a text tower has cut so far.
    """

    is_signal: bool = False
    tokenizer: Any = None
    truncated: int = 0

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    @property
    def optional_keys(self) -> tuple[str, ...]:
        """The optional keys of this side in a batch, besides its name."""
        lengths = (f"{self.name}_lengths",) if self.is_signal else ()
        return (*lengths, f"{self.name}_mask")

    def forward(
        self,
        values: Any,
        lengths: Any = None,
        mask: Tensor | None = None,
        *,
        sequences: bool = True,
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Check a batch and encode it.

        Args:
            values: the batch (see `read`), or the `Inputs` that `read` has returned.
            lengths: (B,) whole numbers, the real frames of each item.
            mask: bool, True at a real frame or token. Pass at most one of lengths and mask.
            sequences: whether to return the tokens too.

        Returns:
            Pooled features (B, D), and the tokens (None without `sequences`).
        """
        inputs = values
        if not isinstance(inputs, Inputs):
            inputs = self.read(values, lengths=lengths, mask=mask)
        return self.encode(inputs, sequences=sequences)

    @abstractmethod
    def read(self, values: Any, *, lengths: Any = None, mask: Tensor | None = None) -> Inputs:
        """Check a batch; this is the only place where a tower checks its input."""

    @abstractmethod
    def encode(
        self, inputs: Inputs, *, sequences: bool
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Encode a checked batch."""

    def trim(self, inputs: Inputs) -> Inputs:
        """Cut off padding that no item needs; called on each micro-batch of an input."""
        return inputs

    def maps(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the floating-point maps (B, ..., T) to check for NaN, by view."""
        return {}
