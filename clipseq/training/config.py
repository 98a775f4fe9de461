"""The configuration of a run: its data, its model and its training, read from TOML."""

import math
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from clipseq.augment import AugmentConfig
from clipseq.config import strict, structure, to_plain, unstructure
from clipseq.encoders.hub import is_hub_id
from clipseq.engine.files import write_text
from clipseq.engine.options import check_kind, to_path
from clipseq.errors import ConfigError
from clipseq.model.saved import CardFacts

Monitor = Literal["R1", "order_accuracy", "loss_total"]
"""Names of the metrics that can choose the model; `metrics.csv` has them with ``val_`` before."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


LARGEST = 2**31 - 1
"""Largest count in a configuration; more would overflow in a library that gets it."""

LARGEST_SEED = 2**32 - 1
"""Largest seed that NumPy takes."""


def _between(low: int, high: int | float = LARGEST) -> Any:
    def check(instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value is None:
            return
        # A configuration that is built in Python has not been structured.
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ConfigError(f"{attribute.name} must be a number, got {value!r}")
        if not value >= low:  # also true of NaN
            raise ConfigError(f"{attribute.name} must be at least {low}, got {value!r}")
        if value > high or value == math.inf:
            most = "finite" if high == math.inf else f"at most {high}"
            raise ConfigError(f"{attribute.name} must be {most}, got {value!r}")

    return check


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and value else value


def _is_path(instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if value is None and attribute.default is None:
        return
    try:
        if isinstance(value, Path):
            to_path(attribute.name, value)
            return
    except ValueError as error:
        raise ConfigError(str(error)) from error
    raise ConfigError(f"{attribute.name} must be a path, got {value!r}")


def _above_zero(instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ConfigError(f"{attribute.name} must be a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ConfigError(f"{attribute.name} must be greater than 0 and finite, got {value!r}")


@attrs.frozen(field_transformer=strict)
class SimulatedData:
    """A data set that is simulated into the run folder at the start of the run.

    Attributes:
        clips: number of clips.
        seed: random seed; the same seed gives the same clips.
        motion: recorded motion (.npz) that moves the body; None: the simulator's own motions.
    """

    clips: int = attrs.field(default=600, validator=_between(2))
    seed: int = attrs.field(default=0, validator=_between(0, LARGEST_SEED))
    motion: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)


@attrs.frozen(field_transformer=strict)
class DataConfig:
    """The source of the clips: exactly one of `path`, `simulated` and `radhar`.

    Attributes:
        path: a data set on disk: a folder, as `clipseq simulate` writes it, or an .npz.
        simulated: options of the simulator.
        radhar: an .npz of real radar maps, which are spliced into ordered sequences.
        seed: random seed for splicing `radhar`.
    """

    path: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)
    simulated: SimulatedData | None = None
    radhar: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)
    seed: int = attrs.field(default=0, validator=_between(0, LARGEST_SEED))

    def __attrs_post_init__(self) -> None:
        given = [name for name in ("path", "simulated", "radhar") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                "[data] must have exactly one of data.path, data.simulated and data.radhar, "
                f"got {' and '.join(given) or 'none'}"
            )


@attrs.frozen(field_transformer=strict)
class TokenizerConfig:
    """The tokenizer, which is trained on the training captions and saved with the model.

    Attributes:
        kind: "bpe" (tokens are pieces of words; reads any text), "word" (a token for each word), or
            "byte" (a token for each byte; not trained).
        vocab_size: largest number of token ids.
    """

    kind: Literal["bpe", "word", "byte"] = "bpe"
    vocab_size: int = attrs.field(default=4096, validator=_between(3))


@attrs.frozen(field_transformer=strict)
class TrainingConfig:
    """The options of training.

    Attributes:
        out: the run folder; it must not exist yet.
        epochs: passes over the training clips; set either `epochs` or `max_steps`.
        max_steps: number of optimizer steps.
        batch_size: number of clips that are compared with each other, over all processes
            together; each process takes its share. With `accumulate` > 1, the gradients of several
            such batches are averaged, but a clip's negatives are still those of one batch. A
            training split with fewer clips is one batch.
        accumulate: batches per optimizer step.
        micro_batch: clips of a batch that are encoded at a time, for batches larger than memory;
            None: all of them. Loss and gradients are still those of the whole batch; a step takes
            one more forward of the towers. See `CLIP.micro_batch`.
        learning_rate: peak learning rate, which is reached after `warmup_steps` and then falls to
            zero along half a cosine.
        weight_decay: weight decay of matrices; norms, biases, scales and mixing weights never
            decay.
        warmup_steps: optimizer steps of linear warm-up.
        gradient_clip: largest gradient norm; 0 turns clipping off.
        precision: "32-true", or autocast with "bf16-mixed" or "16-mixed" (with loss scaling).
        accelerator: the device to train on: "auto", "cpu", "gpu" or "mps".
        devices: processes on each machine, each with its own GPU, or sharing the CPU. Except for
            rounding and the draws of dropout, their number changes only the speed; a run may be
            resumed with another number. Under torchrun, its --nproc-per-node is used instead.
        nodes: number of machines. Start the same command on each, with MASTER_ADDR, MASTER_PORT and
            NODE_RANK in the environment, or with SLURM; the run folder must be on a shared disk.
            Under torchrun, its --nnodes is used instead.
        timeout: seconds after which a process stops waiting for another. A broken connection, for
            example because a process has ended, is noticed at once.
        checkpoint_every: optimizer steps from one validation to the next. A checkpoint is written
            after each validation; both always follow the last step.
        monitor: the validation metric by which the model in model/ is chosen: "R1" (R@1, the mean
            of both directions) or "order_accuracy", of which the highest is the best, or
            "loss_total", of which the lowest is. The later of two equals wins. Without a split
            "val", the model is that of the last step.
        patience: number of validations in a row without a new best after which the run stops early;
            None: never. The learning rate has not fallen to zero then.
        threads: CPU threads; None: one for a model with fewer than 10 million parameters, which
            gains nothing from more, and torch's default otherwise.
        num_workers: processes that load batches; 0 loads them in the training process.
        seed: random seed of the initial weights, the order of the clips, and dropout.
        log_norms: whether to log the norms of the features too (with several processes, their mean
            weighted by the number of clips).
        augment: the strengths of the augmentations of the training clips. Validation and evaluation
            never augment.
    """

    out: Path = attrs.field(converter=_path, validator=_is_path)
    epochs: int | None = attrs.field(default=None, validator=_between(1))
    max_steps: int | None = attrs.field(default=None, validator=_between(1))
    batch_size: int = attrs.field(default=64, validator=_between(2))
    accumulate: int = attrs.field(default=1, validator=_between(1))
    micro_batch: int | None = attrs.field(default=None, validator=_between(1))
    learning_rate: float = attrs.field(default=5e-4, validator=_above_zero)
    weight_decay: float = attrs.field(default=0.1, validator=_between(0, math.inf))
    warmup_steps: int = attrs.field(default=50, validator=_between(0))
    gradient_clip: float = attrs.field(default=1.0, validator=_between(0, math.inf))
    precision: Precision = "32-true"
    accelerator: str = "auto"
    devices: int = attrs.field(default=1, validator=_between(1))
    nodes: int = attrs.field(default=1, validator=_between(1))
    timeout: int = attrs.field(default=600, validator=_between(1))
    checkpoint_every: int = attrs.field(default=100, validator=_between(1))
    monitor: Monitor = "R1"
    patience: int | None = attrs.field(default=None, validator=_between(1))
    threads: int | None = attrs.field(default=None, validator=_between(1, 4096))
    num_workers: int = attrs.field(default=0, validator=_between(0, 4096))
    seed: int = attrs.field(default=0, validator=_between(0, LARGEST_SEED))
    log_norms: bool = False
    augment: AugmentConfig = attrs.field(factory=AugmentConfig)

    def __attrs_post_init__(self) -> None:
        if (self.epochs is None) == (self.max_steps is None):
            given = "neither" if self.epochs is None else "both"
            raise ConfigError(
                f"[training] must have either training.epochs or training.max_steps, got {given}"
            )

    def steps(self, batches_per_epoch: int) -> int:
        """Return the number of optimizer steps of the whole run."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        return max(1, self.epochs * batches_per_epoch // self.accumulate)


@attrs.frozen(field_transformer=strict)
class RunConfig:
    """A whole run: the tables [data], [model], [tokenizer], [training] and [card] of a TOML file.

    Attributes:
        data: the source of the clips.
        training: the options of training.
        model: keyword arguments of `clipseq.CLIP`; the others have CLIP's defaults, except that
            the views are by default those of the data.
        tokenizer: the tokenizer of the captions.
        card: facts for the model card, such as the licence of the weights.
    """

    data: DataConfig
    training: TrainingConfig
    model: dict[str, Any] = attrs.field(factory=dict)
    tokenizer: TokenizerConfig = TokenizerConfig()
    card: CardFacts = attrs.field(factory=CardFacts)


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run's configuration from a TOML file.

    Relative paths in it start at the current directory, like those on a command line.

    Args:
        path: the TOML file, a path or a string.
        overrides: values that replace those of the file, each written ``key=value`` with the dotted
            path of the key, such as ``training.max_steps=10``. The value is written as in TOML; one
            that is not valid TOML is a string, so ``training.out=runs/new`` needs no quotes.

    Raises:
        ConfigError: there is no such file, or it is a folder or not valid TOML; a key is unknown
            (the message suggests the nearest), or a value has the wrong type. The message names
            the file and the key.
        TypeError: `path` is not a path, or `overrides` is not a list of strings.
        ValueError: `path` is empty.
    """
    path = to_path("path", path)
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise TypeError(f"overrides must be a list of key=value, got {overrides!r}")
    overrides = tuple(overrides)
    for override in overrides:
        check_kind("overrides", override, str, "a list of strings key=value")
    try:
        # A byte order mark, as some editors on Windows write it, is skipped.
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}") from None
    except IsADirectoryError:
        how = (
            f"to continue the run in it: clipseq train --resume {shlex.quote(str(path))}"
            if (path / "config.toml").exists()
            else f'to train on a data set in it, have [data] path = "{path}" in that file'
        )
        raise ConfigError(
            f"{path} is a folder, and the configuration of a run is a TOML file; {how}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}{_hint(path, error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    for override in overrides:
        _set(table, override)
    try:
        config = structure(RunConfig, table)
    except ConfigError as error:
        given = f" with {', '.join(overrides)}" if overrides else ""
        raise ConfigError(f"{path}{given}: {error}") from None
    return make_absolute(config)


def _hint(path: Path, error: Exception) -> str:
    """Return what to do about a backslash in a path, which TOML reads as an escape."""
    where = re.search(r"at line (\d+)", str(error))
    if where is None:
        return ""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    line = lines[min(int(where[1]), len(lines)) - 1]
    if "\\" not in line:
        return ""
    return "; write a path with backslashes in single quotes, or with forward slashes"


def _set(table: dict[str, Any], override: str) -> None:
    """Set one key of `table`, as ``key=value`` says."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise ConfigError(
            f"an override must be key=value, such as training.max_steps=10, got {override!r}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except RecursionError as error:
        raise ConfigError(f"{key.strip()} must not be nested this deeply") from error
    for depth, name in enumerate(path[:-1], 1):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{'.'.join(path[:depth])} must be a table to set {'.'.join(path)}, got {inner!r}"
            )
        table = inner
    table[path[-1]] = value


def write_config(config: RunConfig, path: str | Path) -> None:
    """Write `config` as TOML that `read_config` reads back as an equal configuration.

    Raises:
        ConfigError: TOML cannot represent a value; the message names its key.
        TypeError, ValueError: `path` is not a path.
    """
    path = to_path("path", path)
    check_kind("config", config, RunConfig, "a RunConfig")
    import tomli_w  # part of the extra `train`, which is not needed to read a configuration

    text = tomli_w.dumps(_toml(to_plain(unstructure(config)), ""))
    write_text(path, text)


def make_absolute(config: RunConfig) -> RunConfig:
    """Return `config` with every relative path made absolute, from the current directory.

    A run that is resumed from another directory must find the same files.
    """

    def at(path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().resolve()

    model = dict(config.model)
    for side in ("encoder_cfg", "text_cfg"):
        tower = model.get(side)
        # `pin_options` reports a value of the wrong type.
        pretrained = tower.get("pretrained") if isinstance(tower, Mapping) else None
        given = str(pretrained) if isinstance(pretrained, str | Path) else ""
        if isinstance(tower, Mapping) and given and not is_hub_id(given):
            model[side] = {**tower, "pretrained": str(at(Path(given)))}
    simulated = config.data.simulated
    if simulated is not None:
        simulated = attrs.evolve(simulated, motion=at(simulated.motion))
    return attrs.evolve(
        config,
        model=model,
        data=attrs.evolve(
            config.data,
            path=at(config.data.path),
            radhar=at(config.data.radhar),
            simulated=simulated,
        ),
        training=attrs.evolve(config.training, out=config.training.out.expanduser().resolve()),
    )


def _toml(value: Any, where: str) -> Any:
    """Return `value` as TOML represents it; keys with None are left out, since TOML has no null."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"a key of {where} must be a string, got {key!r}")
        return {
            key: _toml(inner, f"{where}.{key}" if where else key)
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list | tuple):
        return [_toml(item, where) for item in value]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{where} must be Unicode text, got {value!r}") from None
    if isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(
        f"{where} must be a number, a string, a list or a table, as TOML holds them, got "
        f"{value!r} ({type(value).__name__})"
    )
