"""The files of a saved model: config.json, model.safetensors, the tokenizer; never pickle.

config.json          the options that the model was built with, and the similarities and losses that
                     are needed to build it again, each with its distribution and version
model.safetensors    every weight (only the projection of a Hugging Face text tower)
tokenizer.json       a trained tokenizer
y_encoder/           a Hugging Face text tower: config, weights (safetensors) and tokenizer; in
                     x_encoder/ if it is the tower of x
"""

from collections.abc import Mapping

import attrs
from torch import Tensor

from clipseq.distributed.sharding import GathersWeights
from clipseq.encoders import HuggingFaceTextTower, Tower
from clipseq.encoders.tokenizer import FILE_NAME
from clipseq.model.config import SIDES, ModelConfig
from clipseq.registry import LossInfo, SimilarityInfo
from clipseq.sequence_loss import SequenceLoss

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (WEIGHTS, FILE_NAME, *(side.tower for side in SIDES), CONFIG)
"""The files and folders that a save may write, in the order in which they are moved into place."""


@attrs.frozen
class Origin:
    """The distribution that a similarity or a loss came from when the model was saved."""

    distribution: str
    version: str

    @classmethod
    def of(cls, info: SimilarityInfo | LossInfo) -> "Origin":
        """Return the origin of a registered class."""
        return cls(info.distribution, info.version)


@attrs.frozen
class SavedModel:
    """The content of config.json.

    Attributes:
        clipseq_version: the version that wrote it.
        model: the options of the model, with all options of its similarity and loss.
        modules: class of each tower that was a user's module, by its argument.
        tokenizer: kind of the tokenizer; None if no tower has one of clipseq's tokenizers.
        similarities: the similarities in it, with their origins.
        losses: the losses in it, with their origins.
    """

    clipseq_version: str
    model: ModelConfig
    modules: dict[str, str]
    tokenizer: str | None
    similarities: dict[str, Origin]
    losses: dict[str, Origin]


class TwoTowers(GathersWeights):
    """The attributes of a model that saving and loading read."""

    config: ModelConfig
    x_encoder: Tower
    y_encoder: Tower
    sequence_loss_fn: SequenceLoss | None


def language_model_keys(model: TwoTowers) -> dict[str, str]:
    """Return the prefix of each Hugging Face model's weights, by the attribute of its tower."""
    return {
        side.tower: f"{side.tower}.language_model."
        for side in SIDES
        if isinstance(getattr(model, side.tower), HuggingFaceTextTower)
    }


def own_weights(model: TwoTowers, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that go into the weights file, without those of Hugging Face models."""
    foreign = tuple(language_model_keys(model).values())
    return {name: value for name, value in state.items() if not name.startswith(foreign)}
