"""Complete, commented configurations for `clipseq init`, one for each kind of data.

The files in `configs/` hold the values that suit a kind of data. Every other key follows as a
comment with its meaning and its default, both taken from the code.
"""

import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from clipseq.cli.keys import Key, keys_of
from clipseq.errors import ConfigError, suggest

WIDTH = 100
"""Largest number of columns of a comment."""


def config_kinds() -> dict[str, str]:
    """Return the text of the file of each kind of data, by the name of the kind."""
    folder = resources.files("clipseq.cli") / "configs"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".toml")
    }


def write_config_file(kind: str, path: Path) -> None:
    """Write the configuration of a kind of data to a new file.

    Raises:
        ConfigError: an unknown kind; the file exists, or its folder does not.
    """
    text = config_text(kind)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"FILE must be a new file, got {path}, which exists") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def config_text(kind: str) -> str:
    """Return a TOML file with every key of a run's configuration.

    Keys that the kind sets have its values. The others are comments with their defaults; remove
    the `#` to set them.

    Raises:
        ConfigError: an unknown kind.
    """
    kinds = config_kinds()
    if kind not in kinds:
        raise ConfigError(
            f"KIND must be one of {', '.join(kinds)}, got {kind!r}{suggest(kind, kinds)}"
        )
    head = [line for line in kinds[kind].splitlines() if line.startswith("#")]
    lines = [
        *head,
        "#",
        "# Below, '##' explains a key, and '#' before a key shows its default. Paths start at the",
        "# current directory.",
        *_tables(tomllib.loads(kinds[kind])),
    ]
    return "\n".join(lines) + "\n"


def _tables(values: Mapping[str, Any]) -> Iterator[str]:
    from clipseq import CLIP, SignalConfig, TextConfig
    from clipseq.training import RunConfig

    towers: dict[str, tuple[type, str]] = {
        "encoder_cfg": (SignalConfig, "the tower of the signal."),
        "text_cfg": (TextConfig, "the tower of the text."),
    }
    for key in sorted(keys_of(RunConfig), key=lambda key: key.name == "training"):  # it comes last
        given = values.get(key.name)
        if key.name != "model":
            yield from _table(key, key.name, given)
            continue
        yield from _table(
            attrs.evolve(key, kind=CLIP, meaning="keyword arguments of `clipseq.CLIP`."),
            "model",
            {k: v for k, v in (given or {}).items() if k not in towers},
            leave_out=("tokenizer", "sequence_similarity_options", *towers),
        )
        for side, (cls, about) in towers.items():
            tower = dict((given or {}).get(side, {}))
            kind = tower.pop("tower", None)
            if kind == "signal":
                cls, about = SignalConfig, "the tower of the second signal."
            first = [f"tower = {_toml(kind)}"] if kind else []
            yield from _table(
                Key(side, cls, {}, about), f"model.{side}", tower, first=first, leave_out=_data_set
            )
        yield from _comment("options of the similarity, such as window = [6, 1] for local.")
        yield "# [model.sequence_similarity_options]"


_data_set = ("name", "views", "vocab_size")
"""Keys of towers that training takes from the data set."""


def _table(
    key: Key,
    path: str,
    values: Mapping[str, Any] | None,
    *,
    first: list[str] | None = None,
    leave_out: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield the lines of one table and of the tables inside it."""
    values = values or {}
    cls = key.table or key.kind
    keys = list(keys_of(cls, leave_out=leave_out))
    inner = [k for k in keys if k.table]
    plain = [k for k in keys if not k.table]
    # An empty table counts as given where the default is None, so its heading is a comment then.
    commented = not values and (key.default is None or key.default is attrs.NOTHING)
    only_inner = not any(k.name in values for k in plain) and any(k.name in values for k in inner)
    yield from _comment(key.meaning)
    yield f"# [{path}]" if commented or only_inner else f"[{path}]"
    yield from first or []
    for k in plain:
        yield from _comment(k.meaning)
        if k.name in values:
            yield f"{k.name} = {_toml(values[k.name])}"
        elif k.default in (None, attrs.NOTHING, inspect.Parameter.empty):
            yield f"# {k.name} =      # not set"
        else:
            yield f"# {k.name} = {_toml(k.default)}"
    for k in inner:
        yield from _table(k, f"{path}.{k.name}", values.get(k.name))


def _comment(text: str) -> Iterator[str]:
    yield ""
    sentence = " ".join(text.split())
    if not re.match(r"[a-z],", sentence):  # symbols of formulas keep their case
        sentence = sentence[:1].upper() + sentence[1:]
    yield from textwrap.wrap(
        sentence,
        WIDTH,
        initial_indent="## ",
        subsequent_indent="## ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _toml(value: Any) -> str:
    """Return a value in TOML, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    import tomli_w  # part of the extra `train`

    return tomli_w.dumps({"value": str(value) if isinstance(value, Path) else value})[8:].strip()
