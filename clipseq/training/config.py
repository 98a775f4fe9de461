"""The configuration of a run: what it trains on, which model, and how; read from TOML."""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from clipseq.config import plain, structure, unstructure
from clipseq.errors import ConfigError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def _at_least(low: int) -> Any:
    def check(instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value is not None and not value >= low:  # NaN is neither
            raise ConfigError(f"{attribute.name} must be at least {low}, got {value!r}")

    return check


def _above_zero(instance: Any, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{attribute.name} must be greater than 0 and finite, got {value!r}")


@attrs.frozen
class SimulatedData:
    """A data set simulated at the start of the run, into the run folder.

    Attributes:
        clips: how many.
        seed: the same seed gives the same clips.
        motion: recorded motion (.npz) to drive the body with; None: the simulator's own.
    """

    clips: int = attrs.field(default=600, validator=_at_least(2))
    seed: int = 0
    motion: Path | None = None


@attrs.frozen
class DataConfig:
    """Where the clips come from: exactly one of the three.

    Attributes:
        path: a data set on disk (a folder or an .npz), as `clipseq simulate` writes it.
        simulated: options of the simulator.
        radhar: an .npz of real radar maps, spliced into ordered sequences.
        seed: of the splicing of `radhar`.
    """

    path: Path | None = None
    simulated: SimulatedData | None = None
    radhar: Path | None = None
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        given = [name for name in ("path", "simulated", "radhar") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                "give exactly one of data.path, data.simulated and data.radhar, "
                f"got {' and '.join(given) or 'none'}"
            )


@attrs.frozen
class TokenizerConfig:
    """The tokenizer that is trained on the training captions, and saved with the model.

    Attributes:
        kind: "bpe" (pieces of words, any text), "word" (a token for each word), or "byte"
            (nothing to train).
        vocab_size: most token ids.
    """

    kind: Literal["bpe", "word", "byte"] = "bpe"
    vocab_size: int = attrs.field(default=4096, validator=_at_least(3))


@attrs.frozen
class TrainingConfig:
    """How a model is trained.

    Attributes:
        out: the run folder; it must not exist yet.
        epochs: passes over the training clips; give either `epochs` or `max_steps`.
        max_steps: optimizer steps.
        batch_size: clips whose pairs are compared with each other, of all processes together:
            each takes its share of them. With `accumulate` > 1 the gradients of several such
            batches are averaged; the negatives stay those of one batch. A training split with
            fewer clips is one batch.
        accumulate: batches to one optimizer step.
        micro_batch: clips of a batch that are encoded at a time, for batches larger than memory;
            None: all of them. Loss and gradients stay those of the whole batch; a step takes one
            more forward of the towers. See `CLIP.micro_batch`.
        learning_rate: the peak; reached after `warmup_steps`, then half a cosine down to zero.
        weight_decay: of the matrices; norms, biases, scales and mixing weights never decay.
        warmup_steps: optimizer steps of linear warm-up.
        gradient_clip: largest gradient norm; 0 for none.
        precision: "32-true", or autocast with "bf16-mixed" or "16-mixed" (with loss scaling).
        accelerator: "auto", "cpu", "gpu", "mps": where to train.
        devices: processes on each machine, each with a GPU of its own, or sharing the CPU. Their
            number changes the speed and, but for rounding and the draws of dropout, nothing else;
            a run may be resumed with another. Under torchrun its --nproc-per-node counts.
        nodes: machines. On each the same command is started, with MASTER_ADDR, MASTER_PORT and
            NODE_RANK in the environment or by SLURM; the run folder is on a disk that all share.
            Under torchrun its --nnodes counts.
        timeout: seconds after which a process that waits for another in vain gives up. What
            breaks a connection, such as the end of a process, is noticed at once.
        checkpoint_every: optimizer steps between two validations, each of which is followed by a
            checkpoint; the last step always has both.
        threads: CPU threads to compute with; None: torch's choice. One is best for small models.
        num_workers: processes that load batches; 0 loads them in the training process.
        seed: of the initial weights, the order of the clips, and dropout.
        log_norms: also log the norms of the features (with several processes: the mean of theirs,
            weighted by their clips).
    """

    out: Path
    epochs: int | None = attrs.field(default=None, validator=_at_least(1))
    max_steps: int | None = attrs.field(default=None, validator=_at_least(1))
    batch_size: int = attrs.field(default=64, validator=_at_least(2))
    accumulate: int = attrs.field(default=1, validator=_at_least(1))
    micro_batch: int | None = attrs.field(default=None, validator=_at_least(1))
    learning_rate: float = attrs.field(default=5e-4, validator=_above_zero)
    weight_decay: float = attrs.field(default=0.1, validator=_at_least(0))
    warmup_steps: int = attrs.field(default=50, validator=_at_least(0))
    gradient_clip: float = attrs.field(default=1.0, validator=_at_least(0))
    precision: Precision = "32-true"
    accelerator: str = "auto"
    devices: int = attrs.field(default=1, validator=_at_least(1))
    nodes: int = attrs.field(default=1, validator=_at_least(1))
    timeout: int = attrs.field(default=600, validator=_at_least(1))
    checkpoint_every: int = attrs.field(default=100, validator=_at_least(1))
    threads: int | None = attrs.field(default=None, validator=_at_least(1))
    num_workers: int = attrs.field(default=0, validator=_at_least(0))
    seed: int = attrs.field(default=0, validator=_at_least(0))
    log_norms: bool = False

    def __attrs_post_init__(self) -> None:
        if (self.epochs is None) == (self.max_steps is None):
            given = "neither" if self.epochs is None else "both"
            raise ConfigError(f"give either training.epochs or training.max_steps, got {given}")

    def steps(self, batches_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        return max(1, self.epochs * batches_per_epoch // self.accumulate)


@attrs.frozen
class RunConfig:
    """A whole run: the tables [data], [model], [tokenizer] and [training] of a TOML file.

    Attributes:
        data: where the clips come from.
        training: how to train.
        model: keyword arguments of `clipseq.CLIP`; what it leaves out has CLIP's defaults, and
            the radar views, where not given, are those of the data.
        tokenizer: what turns captions into token ids.
    """

    data: DataConfig
    training: TrainingConfig
    model: dict[str, Any] = attrs.field(factory=dict)
    tokenizer: TokenizerConfig = TokenizerConfig()


def read_config(path: Path) -> RunConfig:
    """Read a run's configuration from a TOML file; relative paths in it start at the
    current directory, as those of a command line do.

    Raises:
        ConfigError: no such file, a folder, no valid TOML, an unknown key (with the nearest known
            one), or a value of the wrong type; the message names the file and the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}") from None
    except IsADirectoryError:
        how = (
            f"to continue the run in it: clipseq train --resume {path}"
            if (path / "config.toml").exists()
            else f'to train on a data set in it, have [data] path = "{path}" in that file'
        )
        raise ConfigError(
            f"{path} is a folder, and the configuration of a run is a TOML file; {how}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from error
    try:
        config = structure(RunConfig, table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return absolute(config)


def write_config(config: RunConfig, path: Path) -> None:
    """Write `config` as TOML that `read_config` reads back as an equal configuration.

    Raises:
        ConfigError: a value that TOML cannot hold; the message names its key.
    """
    import tomli_w  # part of the extra `train`, which reading a configuration does not need

    text = tomli_w.dumps(_toml(plain(unstructure(config)), ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def absolute(config: RunConfig) -> RunConfig:
    """`config` with every relative path made absolute, from the current directory.

    A run that is resumed from another directory must find the same files.
    """

    def at(path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().resolve()

    model, text = config.model, config.model.get("text_cfg")
    # A wrong type here is for `check_model_config` to name.
    pretrained = text.get("pretrained") if isinstance(text, Mapping) else None
    if isinstance(text, Mapping) and isinstance(pretrained, str | Path) and str(pretrained):
        model = model | {"text_cfg": {**text, "pretrained": str(at(Path(pretrained)))}}
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
    """Return `value` as TOML holds it; a value of None is its key left out, as TOML has no null."""
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
    if isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(
        f"{where} must be a number, a string, a list or a table, as TOML holds them, got "
        f"{value!r} ({type(value).__name__})"
    )
