"""The parts of a model, built from its config: towers and losses."""

from torch import nn

from clipseq.encoders import (
    ByteTokenizer,
    HuggingFaceTextTower,
    ModuleTower,
    SignalConfig,
    SignalTower,
    TextConfig,
    TextTower,
    Tower,
)
from clipseq.encoders.hugging_face import check_pretrained
from clipseq.encoders.text import check_context_length
from clipseq.encoders.transformer import check_shape
from clipseq.losses import PairLoss
from clipseq.model.config import SIDES, ModelConfig, Side
from clipseq.registry import available_losses, get_loss, get_similarity
from clipseq.sequence_loss import SequenceLoss
from clipseq.similarity import Similarity


def make_towers(config: ModelConfig) -> tuple[Tower, Tower]:
    """Build the towers of x and of y, in that order.

    Raises:
        ImportError, ValueError: see the towers.
    """
    x, y = (
        _make_tower(getattr(config, side.argument), side, name, config)
        for side, name in zip(SIDES, config.names, strict=True)
    )
    return x, y


def check_towers(config: ModelConfig) -> None:
    """Raise the errors of `make_towers` that can be found without building or loading a tower.

    Raises:
        ImportError, ValueError: see the towers.
    """
    for side in SIDES:
        tower = getattr(config, side.argument)
        if isinstance(tower, nn.Module):
            continue
        if isinstance(tower, TextConfig):
            if tower.pretrained is not None:
                check_pretrained(tower)
                continue
            check_context_length(config.context_length)
        check_shape(config.transformer_width, config.transformer_layers, config.transformer_heads)


def make_pair_loss(config: ModelConfig) -> PairLoss:
    """Build the loss, with `init_scale` = 1 / temperature if it starts at the temperature.

    Raises:
        UnknownLossError, TypeError, ValueError: see `get_loss`, and the loss.
    """
    options = dict(config.loss_options or {})
    info = available_losses([config.loss]).get(config.loss)
    if info is not None and info.starts_at_temperature:
        options.setdefault("init_scale", 1 / config.temperature)
    return get_loss(config.loss, **options)


def make_sequence_loss(config: ModelConfig) -> SequenceLoss:
    """Build the similarity and the loss over its scores.

    Raises:
        UnknownSimilarityError, TypeError, ValueError: see `get_similarity`, and the similarity.
    """
    options = config.sequence_similarity_options or {}
    similarity = get_similarity(config.sequence_similarity_type, **options)
    for name, part in similarity.named_modules():
        size = part.embed_dim if isinstance(part, Similarity) else None
        if size not in (None, config.transformer_width):
            where = f" of {name.rpartition('.')[2].removeprefix('part_')}" if name else ""
            raise ValueError(
                f"embed_dim{where} must be {config.transformer_width}, the transformer_width of "
                f"the model, or None, got {size}"
            )
    return SequenceLoss(similarity, make_pair_loss(config))


def _make_tower(tower: object, side: Side, name: str, config: ModelConfig) -> Tower:
    width = config.transformer_width
    layers, heads = config.transformer_layers, config.transformer_heads
    if isinstance(tower, nn.Module):
        # A module without its own name is of the default kind of its side; one with a name is
        # taken to be a signal.
        signal = side.kind == "signal" or name != side.name
        return ModuleTower(tower, width=width, name=name, signal=signal)
    if isinstance(tower, SignalConfig):
        return SignalTower(tower, width=width, layers=layers, heads=heads)
    assert isinstance(tower, TextConfig)
    if tower.pretrained is not None:
        return HuggingFaceTextTower(tower, context_length=config.context_length, width=width)
    return TextTower(
        tower,
        tokenizer=config.tokenizer or ByteTokenizer(),
        context_length=config.context_length,
        width=width,
        layers=layers,
        heads=heads,
    )
