"""Strict conversion of plain dictionaries into attrs configs: an unknown key is an error.

cattrs does the structuring. This module adds two things. Nothing is coerced silently: neither
`"3"` nor `True` is accepted as an int, nor a string as a sequence of strings. All problems of a
config are reported at once, each with its dotted path.
"""

import numbers
import types
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import numpy as np
from cattrs import Converter, ForbiddenExtraKeysError
from cattrs.cols import is_mapping, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn

from clipseq.errors import ConfigError, suggest

__all__ = ["require_type", "strict", "structure", "to_plain", "unstructure"]

T = TypeVar("T")


def structure(cls: type[T], mapping: object, *, where: str = "") -> T:
    """Build the attrs class `cls` from a plain mapping such as a TOML table or a JSON object.

    Nested attrs classes, tuples, lists, dicts, `Literal` and unions with `None` are supported. An
    int is accepted for a float, a list for a tuple, and a string for a `Path`. Nothing else is
    converted.

    Args:
        cls: an attrs class.
        mapping: the plain mapping; an instance of `cls` is returned unchanged.
        where: the dotted path of `mapping` in its file, for error texts.

    Raises:
        ConfigError: the message names every unknown key (and the nearest known one), every missing
            key, and every value of the wrong type, with the expected type and the value.
    """
    if isinstance(mapping, cls):
        return mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{where or cls.__name__} must be a table (a mapping of keys to values), "
            f"got {mapping!r}"
        )
    try:
        return _converter.structure(mapping, cls)
    except Exception as error:
        raise ConfigError("; ".join(_problems(error, where))) from None


def unstructure(instance: Any) -> dict[str, Any]:
    """Return the plain dictionary from which `structure` builds `instance` (paths as strings)."""
    plain: dict[str, Any] = _converter.unstructure(instance)
    return plain


def require_type(kind: Any, value: object, *, where: str) -> Any:
    """Check one value as strictly as `structure` does, except that numpy's numbers are accepted.

    Returns:
        The value, with numpy's numbers replaced by Python's own; see `to_plain`.

    Raises:
        ConfigError: the value has another type; the message starts with `where`.
    """
    try:
        return _converter.structure(to_plain(value), kind)
    except Exception as error:
        raise ConfigError("; ".join(_problems(error, where))) from None


def strict(cls: type, fields: list["attrs.Attribute[Any]"]) -> list["attrs.Attribute[Any]"]:
    """Check the values of a config that is built in Python as `structure` checks those of a table.

    Use it as ``attrs.frozen(field_transformer=strict)``. Fields with a converter of their own keep
    it. The values are what `require_type` returns.
    """
    return [
        field
        if field.converter is not None
        else field.evolve(converter=partial(_require_field, field.type, field.name))
        for field in fields
    ]


def _require_field(kind: Any, name: str, value: Any) -> Any:
    is_config = attrs.has(type(value)) and type(value) in (kind, *get_args(kind))
    return value if is_config else require_type(kind, value, where=name)


def to_plain(value: Any) -> Any:
    """Return `value` with the numbers of numpy and similar libraries replaced by Python's own.

    Numbers inside lists, tuples and mappings are replaced too. Everything that is neither a number
    nor a string is returned unchanged.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        inner = [to_plain(item) for item in value]
        return tuple(inner) if isinstance(value, tuple) else inner
    return value


class _RefusedError(Exception):
    """An error about a value whose key is not known yet; its text begins with "must be"."""

    def __init__(self, kind: Any, value: Any, hint: str = ""):
        super().__init__(
            f"must be {_type_name(kind)}, got {value!r} ({type(value).__name__}){hint}"
        )


class _MismatchError(_RefusedError):
    """An error about a value of the wrong type."""


def _type_name(kind: Any) -> str:
    """Write `int | None` as "int or None", and `Literal["a", "b"]` as "'a' or 'b'"."""
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type_name(member) for member in get_args(kind))
    if kind is type(None):
        return "None"
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _problems(error: BaseException, path: str) -> list[str]:
    """List one line per leaf of the exception tree that cattrs raises, with its dotted path."""
    if isinstance(error, BaseExceptionGroup):
        lines = []
        for inner in error.exceptions:
            lines += _problems(inner, _extend(path, inner))
        return lines
    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.alias for field in attrs.fields(error.cl)]
        return [
            f"unknown key {_join(path, key)!r}{suggest(key, known)} (known: {', '.join(known)})"
            for key in sorted(map(str, error.extra_fields))
        ]
    if isinstance(error, KeyError):
        return [f"missing key {path!r}"]
    if isinstance(error, _RefusedError):
        return [f"{path} {error}" if path else str(error)]
    return [f"{path}: {error}" if path else str(error)]


def _extend(path: str, error: BaseException) -> str:
    # cattrs adds the attribute's name, or the index or key in a collection, to the error as a note
    for note in getattr(error, "__notes__", ()):
        step = getattr(note, "name", getattr(note, "index", None))
        if step is not None:
            return f"{path}[{step}]" if isinstance(step, int) else _join(path, str(step))
    return path


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _exactly(kind: type) -> Any:
    def hook(value: Any, _: Any) -> Any:
        # Not isinstance: True is an instance of int, but nobody who writes true means 1.
        if type(value) is not kind:
            raise _MismatchError(kind, value)
        return value

    return hook


def _float(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise _MismatchError(float, value)
    return float(value)


def _path(value: Any, _: Any) -> Path:
    if not isinstance(value, (str, Path)):
        raise _MismatchError(Path, value)
    return Path(value)


def _literal(value: Any, kind: Any) -> Any:
    for choice in get_args(kind):
        if type(value) is type(choice) and value == choice:
            return value
    hint = suggest(value, get_args(kind)) if isinstance(value, str) else ""
    raise _RefusedError(kind, value, hint)


def _union(value: Any, kind: Any) -> Any:
    members = get_args(kind)
    if type(value) in members:
        return value
    for member in members:
        # A table can only be meant for the attrs class, so the errors of that class are raised.
        if attrs.has(member) and isinstance(value, Mapping):
            return _converter.structure(value, member)
    for member in members:
        try:
            return _converter.structure(value, member)
        except Exception:
            continue
    raise _MismatchError(kind, value)


def _none(value: Any, _: Any) -> None:
    if value is not None:
        raise _MismatchError(type(None), value)


def _sequence(value: Any, kind: Any) -> Any:
    members = get_args(kind)
    if not isinstance(value, (list, tuple)):
        raise _MismatchError(kind, value)
    if get_origin(kind) is tuple and Ellipsis not in members:
        if len(value) != len(members):
            raise _MismatchError(kind, value)
        return tuple(
            _converter.structure(v, member) for v, member in zip(value, members, strict=True)
        )
    # The error shows the whole value: for a short list, that is clearer than an index.
    items = []
    for item in value:
        try:
            items.append(_converter.structure(item, members[0]))
        except _MismatchError:
            raise _MismatchError(kind, value) from None
    return tuple(items) if get_origin(kind) is tuple else items


def _mapping_factory(kind: Any, converter: Converter) -> Any:
    inner = mapping_structure_factory(kind, converter, structure_to=dict)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _MismatchError(kind, value)
        return inner(value, kind)

    return hook


def _class_factory(cls: Any, converter: Converter) -> Any:
    inner = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise _MismatchError(cls, value)
        return inner(value, cls)

    return hook


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_list_or_tuple(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


_converter = Converter(forbid_extra_keys=True)
_converter.register_structure_hook_factory(attrs.has, _class_factory)
for _kind in (int, str, bool):
    _converter.register_structure_hook(_kind, _exactly(_kind))
_converter.register_structure_hook(float, _float)
_converter.register_structure_hook(Path, _path)
_converter.register_structure_hook(type(None), _none)
_converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _literal)
_converter.register_structure_hook_func(_is_union, _union)
_converter.register_structure_hook_func(_is_list_or_tuple, _sequence)
_converter.register_structure_hook_factory(is_mapping, _mapping_factory)
_converter.register_unstructure_hook(Path, str)
