"""The interface that every tower has: read (check) an input once, then encode it."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from clipseq.encoders.inputs import Inputs
from clipseq.sequences import Sequences


class Tower(nn.Module, ABC):
    """One side of a model: a batch in, one pooled vector and a sequence of tokens per item out.

    Attributes:
        name: the side's name, which batch keys, metrics and error texts use.
        is_signal: whether its input is a signal, which may come with lengths, or else a text.
        tokenizer: the tokenizer of a text tower; None in every other tower.
    """

    is_signal: bool = False
    tokenizer: Any = None

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    @property
    def optional_keys(self) -> tuple[str, ...]:
        """The keys of a batch that this side may have besides its name."""
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
            mask: bool, True at a real frame or token. At most one of the two.
            sequences: whether to return the tokens too.

        Returns:
            pooled features (B, D), and the tokens (None without `sequences`).
        """
        inputs = values
        if not isinstance(inputs, Inputs):
            inputs = self.read(values, lengths=lengths, mask=mask)
        return self.encode(inputs, sequences=sequences)

    @abstractmethod
    def read(self, values: Any, *, lengths: Any = None, mask: Tensor | None = None) -> Inputs:
        """Check a batch; the one place where a tower looks for mistakes in its input."""

    @abstractmethod
    def encode(
        self, inputs: Inputs, *, sequences: bool
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Encode a checked batch."""

    def trim(self, inputs: Inputs) -> Inputs:
        """Cut off the padding that no item needs; called on each micro-batch of an input."""
        return inputs

    def maps(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the floating-point maps (B, ..., T) in which to look for NaN, by view."""
        return {}
