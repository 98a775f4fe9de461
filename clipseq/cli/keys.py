"""The keys of a configuration: names, types and defaults from the code, meanings from docstrings.

`clipseq init` writes them as comments, and the documentation lists them.
"""

import inspect
import re
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import attrs

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$")
_ENTRY = re.compile(r"^    (\w+): ")


@attrs.frozen
class Key:
    """One key of a configuration, or one option.

    Attributes:
        name: the key.
        kind: its type.
        default: its default; `attrs.NOTHING` or `inspect.Parameter.empty` if it has no default.
        meaning: the description in the docstring, with its line breaks; empty without one.
    """

    name: str
    kind: Any
    default: Any
    meaning: str

    @property
    def table(self) -> type | None:
        """The attrs class of a key that is a table of its own; None for any other key."""
        members = get_args(self.kind) if _is_union(self.kind) else (self.kind,)
        return next((m for m in members if isinstance(m, type) and attrs.has(m)), None)


def keys_of(cls: type, *, leave_out: tuple[str, ...] = ()) -> Iterator[Key]:
    """Yield the fields of an attrs class, or the keyword arguments of any other class."""
    meanings = described(cls.__doc__)
    if attrs.has(cls):
        for field in attrs.fields(cls):
            default = field.default
            if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
                default = default.factory()
            elif attrs.has(type(default)):
                default = {}
            if field.name not in leave_out:
                yield Key(field.name, field.type, default, meanings.get(field.name, ""))
        return
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in leave_out:
            yield Key(name, parameter.annotation, parameter.default, meanings.get(name, ""))


def described(docstring: str | None) -> dict[str, str]:
    """Return name -> meaning from the sections Args and Attributes of a docstring."""
    found: dict[str, str] = {}
    section, name = "", ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        if line and not line.startswith(" "):
            heading = _SECTION.match(line)
            section, name = (heading[1] if heading else ""), ""
        elif section in ("Args", "Attributes"):
            entry = _ENTRY.match(line)
            if entry:
                name = entry[1]
                found[name] = line[entry.end() :]
            elif name:
                found[name] += "\n" + line.strip()
    return found


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)
