"""The options of a model: one frozen record that CLIP, saving, loading and training share."""

import math
from collections.abc import Mapping
from typing import Any

import attrs
from torch import nn

from clipseq.config import require_type, structure
from clipseq.encoders import SignalConfig, TextConfig, Tokenizer
from clipseq.encoders.config import check_name, tower_config, tower_table
from clipseq.errors import ConfigError
from clipseq.registry import available_losses

TowerOption = SignalConfig | TextConfig | Mapping[str, Any] | nn.Module | None
"""The description of a tower: a config, a table of its fields, or a module to use as the tower."""


@attrs.frozen
class Side:
    """One side of a model.

    Attributes:
        argument: the option that describes its tower.
        tower: the attribute of the model that holds its tower.
        kind: the kind of its tower, by default.
        name: its name, by default.
    """

    argument: str
    tower: str
    kind: str
    name: str


SIDES = (
    Side("encoder_cfg", "x_encoder", "signal", SignalConfig().name),
    Side("text_cfg", "y_encoder", "text", TextConfig().name),
)
"""The sides of x and of y."""


@attrs.frozen
class ModelConfig:
    """The options of a `CLIP`, with the names, defaults and meanings of its arguments.

    Values are checked and converted: tables become tower configs, options of None an empty
    dictionary, lists in options tuples, and numpy's numbers Python numbers.

    Raises:
        ConfigError: an option of the wrong type, an unknown or ill-typed key of a tower's table,
            names that are not identifiers or not distinct.
        ValueError: an option out of its range; options that contradict each other.
    """

    encoder_cfg: TowerOption = None
    text_cfg: TowerOption = None
    context_length: int = 512
    transformer_width: int = 512
    transformer_layers: int = 6
    transformer_heads: int = 8
    temperature: float = 0.07
    use_siglip: bool = False
    loss: str = "clip"
    loss_options: Mapping[str, Any] | None = None
    use_sequence_similarity: bool = True
    sequence_similarity_type: str = "combined"
    sequence_similarity_weight: float = 0.9
    sequence_similarity_options: Mapping[str, Any] | None = None
    tokenizer: Tokenizer | None = None

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(ModelConfig):
            value = getattr(self, field.name)
            # A model with a value of a similar type, such as 1 for True, would train but then fail
            # to load.
            if field.type in (int, float, bool, str):
                self._set(field.name, require_type(field.type, value, where=field.name))
            elif field.name.endswith("_options"):
                options = require_type(dict, {} if value is None else value, where=field.name)
                self._set(field.name, lists_to_tuples(options))
        for side in SIDES:
            given = getattr(self, side.argument)
            if not isinstance(given, nn.Module):
                config = tower_config(given, kind=side.kind, where=side.argument)
                self._set(side.argument, config)
        self._check_names()
        if self.use_siglip:
            if self.loss not in ("clip", "siglip"):
                raise ValueError(
                    f"loss must be 'siglip' if use_siglip is True, got {self.loss!r}; "
                    f"pass only one of them"
                )
            self._set("loss", "siglip")
        self._check_temperature()
        if not 0 <= self.sequence_similarity_weight <= 1:
            raise ValueError(
                f"sequence_similarity_weight must lie in [0, 1], "
                f"got {self.sequence_similarity_weight}"
            )
        if self.tokenizer is not None and (
            isinstance(self.tokenizer, type) or not isinstance(self.tokenizer, Tokenizer)
        ):
            raise TypeError(
                "tokenizer must be an object with the members of clipseq.encoders.Tokenizer, got "
                f"{self.tokenizer!r}; train one with clipseq.encoders.train_tokenizer"
            )
        if self.tokenizer is not None and not self.takes_tokenizer:
            raise ValueError(
                "tokenizer must be None, since no tower of this model takes one; leave it out"
            )

    @classmethod
    def from_table(cls, table: object, *, where: str = "") -> "ModelConfig":
        """Build a config from a plain table, such as [model] of a TOML file.

        Args:
            table: options by name, without `tokenizer`.
            where: the dotted path of the table, for error texts.

        Raises:
            ConfigError: the table or a value in it is wrong; the message names the key.
        """
        prefix = f"{where}." if where else ""
        if isinstance(table, Mapping):
            if "tokenizer" in table:
                raise ConfigError(f"unknown key '{prefix}tokenizer': a table cannot hold one")
            towers = {
                side.argument: tower_config(
                    table[side.argument], kind=side.kind, where=f"{prefix}{side.argument}"
                )
                for side in SIDES
                if table.get(side.argument) is not None
            }
            table = {**table, **towers}
        return structure(cls, table, where=where)

    def table(self) -> dict[str, Any]:
        """Return the table that `from_table` turns back into this config.

        A tower that is a module is represented only by its name; the tokenizer is left out.
        """
        options = attrs.asdict(self, recurse=False)
        del options["tokenizer"]
        for side, name in zip(SIDES, self.names, strict=True):
            tower = options[side.argument]
            module = isinstance(tower, nn.Module)
            options[side.argument] = {"name": name} if module else tower_table(tower)
        return options

    @property
    def names(self) -> tuple[str, str]:
        """The names of x and of y."""
        x, y = (self._name(side) for side in SIDES)
        return x, y

    @property
    def takes_tokenizer(self) -> bool:
        """True if a tower of this model takes a tokenizer; a pretrained one has its own."""
        towers = (self.encoder_cfg, self.text_cfg)
        return any(isinstance(tower, TextConfig) and not tower.pretrained for tower in towers)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _name(self, side: Side) -> str:
        name = getattr(getattr(self, side.argument), "name", None)
        return name if isinstance(name, str) else side.name

    def _check_names(self) -> None:
        for side, name in zip(SIDES, self.names, strict=True):
            check_name(name, where=f"the name of {side.argument}")
        x, y = self.names
        if x == y:
            raise ConfigError(
                f"the names of encoder_cfg and text_cfg must differ, got {x!r} twice; "
                f"give one of them another name"
            )
        for one, other in ((x, y), (y, x)):
            if one in (f"{other}_lengths", f"{other}_mask"):
                raise ConfigError(
                    f"the names of encoder_cfg and text_cfg must not be each other's keys in a "
                    f"batch, got {x!r} and {y!r}; give one of them another name"
                )

    def _check_temperature(self) -> None:
        # A loss that starts at 1 / temperature must not start above its largest scale, 100.
        info = available_losses([self.loss]).get(self.loss)
        starts = info is not None and info.starts_at_temperature
        bounded = starts and not {"init_scale", "max_scale"} & set(self.loss_options or ())
        fits = self.temperature >= 0.01 if bounded else self.temperature > 0
        if not (fits and self.temperature < math.inf):
            bound = "at least 0.01 (a scale of 100)" if bounded else "positive"
            raise ValueError(f"temperature must be finite and {bound}, got {self.temperature}")


def lists_to_tuples(value: Any) -> Any:
    """Return `value` with lists replaced by tuples, which TOML and JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: lists_to_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(lists_to_tuples(inner) for inner in value)
    return value
