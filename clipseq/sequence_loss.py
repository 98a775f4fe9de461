"""A contrastive loss over sequences: a similarity and a loss over its scores."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from clipseq.distributed.sharding import GathersWeights, gathers_weights
from clipseq.losses import PairLoss, check_floats
from clipseq.registry import get_loss
from clipseq.similarity import Similarity


class SequenceLoss(GathersWeights):
    """A contrastive loss over the scores of any similarity of sequences.

    Args:
        similarity: a `Similarity`, whose scores are in cosine units.
        kind: the name of a loss, such as "clip" (`ClipLoss`) or "siglip" (`SigLipLoss`), or a
            `PairLoss`.
        loss_options: options of the loss of that name, e.g. ``init_scale=20.0`` or
            ``gather="all"``.

    Attributes:
        similarity_fn: the similarity.
        pair_loss: the loss over its scores, which owns the scale.

    Raises:
        UnknownLossError: there is no loss of that name; the message suggests the nearest.
        TypeError: `similarity` is not a similarity; `kind` is neither a name nor a `PairLoss`; the
            loss has no such option (the message suggests the nearest); an option has the wrong
            type; options are given together with a `PairLoss`.
        ValueError: an option is out of its range.
    """

    def __init__(
        self, similarity: Similarity, kind: str | PairLoss = "clip", **loss_options: Any
    ) -> None:
        super().__init__()
        # Checked by its methods: what torch.compile returns is not an instance of the class.
        methods = [getattr(similarity, name, None) for name in ("prepare", "compare")]
        if not isinstance(similarity, nn.Module) or not all(map(callable, methods)):
            raise TypeError(
                f"similarity must be a Similarity, got {similarity!r}; create one with "
                "get_similarity(name)"
            )
        self.similarity_fn = similarity
        self.pair_loss = _pair_loss(kind, loss_options)

    @gathers_weights
    def scores(
        self, x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Float[Tensor, "B C"]:
        """Score every x with every y by `similarity_fn`, even if FSDP2 has sharded this loss."""
        return self.similarity_fn(x, y, x_mask, y_mask)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_mask: Tensor | None = None,
        y_mask: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of x (B, T, D) and y (C, L, D), where x[i] belongs to y[i].

        Masks are those of `Similarity`, and groups and extra negatives (the y after the first B)
        those of `PairLoss`. Several processes share a batch as `PairLoss` describes: each scores
        its own x with the y of all, and sends its y as the similarity's `prepare_y` returns them. T
        and L may differ between processes.
        """
        check_floats(x=x, y=y)
        for name, values in (("x", x), ("y", y)):
            if values.ndim != 3:
                raise ValueError(
                    f"{name} must have the shape (B, T, D), got {tuple(values.shape)}; for one "
                    "sequence add a batch axis with [None], for pooled features use ClipLoss or "
                    "SigLipLoss"
                )
        if len(x) > len(y):
            raise ValueError(
                f"y must have at least as many items as x, as x[i] belongs to y[i], "
                f"got batches of {len(x)} x and {len(y)} y"
            )
        return self.pair_loss.from_sequences(self.similarity_fn, x, y, x_mask, y_mask, groups)


def _pair_loss(kind: object, options: dict[str, Any]) -> PairLoss:
    if isinstance(kind, str):
        return get_loss(kind, **options)
    if not isinstance(kind, PairLoss):
        raise TypeError(f"kind must be the name of a loss or a PairLoss instance, got {kind!r}")
    if options:
        raise TypeError(
            f"options must be passed to {type(kind).__name__} itself when kind is an instance, "
            f"got {', '.join(options)}; create the loss with them"
        )
    return kind
