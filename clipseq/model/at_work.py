"""Methods of a trained model: encode items of any number, explain a score, group captions."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from clipseq.data import MapDataset
from clipseq.distributed.sharding import gathers_weights
from clipseq.encoders.groups import caption_groups
from clipseq.encoders.text import check_captions
from clipseq.model.explain import explain
from clipseq.model.explanation import Explanation
from clipseq.retrieval import Encoded
from clipseq.retrieval.encoding import encode

if TYPE_CHECKING:
    from clipseq.model.clip import CLIP


class AtWork(nn.Module):
    """The methods of a trained model that take items of any number and kind."""

    def encode(
        self,
        name: str,
        items: Sequence[Any] | MapDataset,
        *,
        batch_size: int = 64,
        progress: bool | Callable[[int, int], object] = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = torch.float16,
    ) -> Encoded:
        """Encode any number of items of one side, of any lengths, for a search or a comparison.

        The items are sorted by length, so that a batch has little padding, and returned in the
        order given. Equal captions are encoded once. The model is in eval mode meanwhile; then each
        of its modules is put back into its own mode. Nothing is kept for gradients.

        Args:
            name: one of `names`.
            items: for a text, captions; for a signal, arrays (F, T), or dictionaries of them by
                view, of any non-empty subset of the views; for both, clips or a data set, whose
                other views and signals are ignored. The y side of a model of two
                signals prefers the second signal of a clip; a data set names its signals.
            batch_size: number of items that are encoded together.
            progress: True shows one line on a terminal, and nothing in a file; a function is called
                with the number of items done and the number of items, after every batch.
            device: device of the result; None: the CPU. The model computes on its own device.
            dtype: type of the result; None: that of the towers' outputs.

        Returns:
            The pooled features and, if the model compares sequences, the sequences, with the ids of
            the clips (or the places of the items) and the fingerprint of the model.

        Raises:
            TypeError: `items` is not a list or a data set; an item is of the wrong type (the error
                names its place).
            ValueError: an unknown name; no items; an item with an unknown view, another shape, no
                frame or token, or NaN (the error names its place); a dtype that cannot hold the
                features.
            DataError: the data set lacks the modality of the side.
        """
        return encode(
            _as_clip(self),
            name,
            items,
            batch_size=batch_size,
            progress=progress,
            device=device,
            dtype=dtype,
        )

    @gathers_weights
    def explain(
        self,
        x: Any,
        y: Any = None,
        /,
        *,
        frame_rate: float | Mapping[str, float] | None = None,
    ) -> Explanation:
        """Explain the similarity of one x and one y: which steps and words match, and how strongly.

        >>> from clipseq import CLIP
        >>> model = CLIP({"views": {"doppler_time": 64}, "patch_frames": 4}, transformer_width=64)
        >>> found = model.explain(torch.randn(64, 10), "a person walks", frame_rate=4.0)
        >>> found.words
        ('a', 'person', 'walks')
        >>> found.seconds.tolist()  # the last patch of 4 frames holds only 2
        [[0.0, 1.0], [1.0, 2.0], [2.0, 2.5]]
        >>> found.weights.shape, sorted(found.parts)
        ((3, 3), ['attention', 'global', 'local', 'temporal'])

        The model is evaluated in eval mode and without gradients. Cost: one pair, and for
        ``combined`` one more pair of each part.

        Args:
            x: one recording, as a map (F, T) or a dictionary of maps by view, or a caption,
                depending on the side; or a `Clip`, of which its signal or its caption is taken.
            y: the other side, likewise. None: that of the clip x.
            frame_rate: frames per second, of all signals or by the name of the signal. None: that
                of the clip's data set; if that is unknown too, times are in frames.

        Returns:
            The score, which is that of `similarity`; the words of a text and the times of a
            signal's steps; their weights (T, L), also for each part of ``combined``. The steps of a
            user's text tower are numbered, and those of a user's signal tower divide the time
            evenly.

        Raises:
            TypeError: a side is not one recording or one caption.
            ValueError: the model compares pooled features only; the maps do not fit the tower or
                hold NaN; an empty caption; a clip without the signal; see also the towers.
        """
        return explain(_as_clip(self), x, y, frame_rate)

    def caption_groups(self, captions: Sequence[str]) -> Int[Tensor, "B"]:
        """Return one integer for each caption, equal where the model reads the same text.

        It reads the same text if the tokenizer returns the same ids, for example because it ignores
        case and white space; in a text tower without a tokenizer, if the captions are equal.

        Raises:
            TypeError, ValueError: the model has no text tower; see also `TextTower.read`.
        """
        tower, names = _as_clip(self).text_tower, _as_clip(self).names
        if tower is None:
            raise ValueError(
                f"captions must belong to a text tower, got a model of {' and '.join(names)}"
            )
        groups = caption_groups(*tower.read(check_captions(captions)))
        assert groups is not None
        return groups


def _as_clip(model: nn.Module) -> "CLIP":
    """Return `model` as the only class that has these methods."""
    return cast("CLIP", model)
