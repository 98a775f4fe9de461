"""The files of a saved model: config.json, model.safetensors, the tokenizer; never pickle.

config.json          the options that the model was built with, and the similarities and losses that
                     are needed to build it again, each with its distribution and version
model.safetensors    every weight (only the projection of a Hugging Face text tower)
tokenizer.json       a trained tokenizer
tokenizer/           the files that a tokenizer of the user's own writes
README.md            the model card
y_encoder/           a Hugging Face text tower: config, weights (safetensors) and tokenizer; in
                     x_encoder/ if it is the tower of x
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import attrs
from torch import Tensor

from clipseq.config import strict, structure
from clipseq.distributed.sharding import GathersWeights
from clipseq.encoders import HuggingFaceTextTower, Tower
from clipseq.encoders.tokenizer import FILE_NAME
from clipseq.errors import CheckpointError
from clipseq.model.config import SIDES, ModelConfig
from clipseq.model.wrappers import unwrap
from clipseq.registry import LossInfo, SimilarityInfo
from clipseq.sequence_loss import SequenceLoss

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
CARD = "README.md"
FILES = (WEIGHTS, FILE_NAME, TOKENIZER, CARD, *(side.tower for side in SIDES), CONFIG)
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
        modules: class of each tower and tokenizer that only the user can build, by its argument.
        tokenizer: kind of the tokenizer; None if no tower has a tokenizer that clipseq can build.
        similarities: the similarities in it, with their origins.
        losses: the losses in it, with their origins.
    """

    clipseq_version: str
    model: ModelConfig
    modules: dict[str, str]
    tokenizer: str | None
    similarities: dict[str, Origin]
    losses: dict[str, Origin]


@attrs.frozen(kw_only=True, field_transformer=strict)
class CardFacts:
    """Facts for a model card that a model does not know about itself; all are optional.

    Attributes:
        title: title of the card.
        license: identifier of the licence of the weights, such as "apache-2.0"; it is not guessed.
        data: a sentence or more about the training data; `clipseq train` writes its own by default.
        citation: BibTeX, or any text, for people who use the model.
    """

    title: str | None = None
    license: str | None = None
    data: str | None = None
    citation: str | None = None


class TwoTowers(GathersWeights):
    """The attributes of a model that saving and loading read."""

    config: ModelConfig
    card: CardFacts
    _card_metrics: str | None
    x_encoder: Tower
    y_encoder: Tower
    sequence_loss_fn: SequenceLoss | None


def language_model_keys(model: TwoTowers) -> dict[str, str]:
    """Return the prefix of each Hugging Face model's weights, by the attribute of its tower."""
    return {
        side.tower: f"{side.tower}.language_model."
        for side in SIDES
        if isinstance(unwrap(getattr(model, side.tower)), HuggingFaceTextTower)
    }


def own_weights(model: TwoTowers, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that go into the weights file, without those of Hugging Face models."""
    foreign = tuple(language_model_keys(model).values())
    return {name: value for name, value in state.items() if not name.startswith(foreign)}


def read_saved(directory: Path) -> SavedModel:
    """Read config.json of a saved model.

    Raises:
        CheckpointError: it is missing, unreadable, corrupt, or not what `save_pretrained` writes.
    """
    path = directory / CONFIG
    try:
        return parse_saved(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is missing: {_what_to_pass(directory)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is corrupt: its JSON is nested too deeply") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not what save_pretrained writes: {error}") from error


def parse_saved(text: str) -> SavedModel:
    """Return the record that the text of a config.json describes.

    Raises:
        ValueError: the text is not JSON, or not what `save_pretrained` writes.
    """
    table = json.loads(text)
    if isinstance(table, dict) and "model" in table:
        table["model"] = ModelConfig.from_table(table["model"], where="model")
    return structure(SavedModel, table)


def _what_to_pass(directory: Path) -> str:
    if (directory / "model" / CONFIG).exists():
        return f"{directory} is a run folder; load the model in it, {directory / 'model'}"
    if (directory / "config.toml").exists():
        return (
            f"{directory} is the folder of a run that is not finished; "
            f"finish it with: clipseq train --resume {shlex.quote(str(directory))}"
        )
    return (
        "expected a directory written by save_pretrained, or the name of a model on the hub, such "
        "as 'owner/name'"
    )
