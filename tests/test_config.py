"""Configs from plain mappings: the values that are accepted, and the errors for all others."""

from pathlib import Path
from typing import Literal

import attrs
import pytest

from clipseq.config import structure, unstructure
from clipseq.errors import ConfigError


def _positive(instance, attribute, value):
    if value <= 0:
        raise ValueError(f"{attribute.name} must be positive, got {value}")


@attrs.frozen
class Inner:
    width: int = attrs.field(default=8, validator=_positive)
    rate: float = 0.5
    mode: Literal["fast", "slow"] = "fast"


@attrs.frozen
class Outer:
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None
    limit: int | None = None
    pair: int | tuple[int, int] = 4
    names: tuple[str, ...] = ()
    bins: dict[str, int] = attrs.field(factory=dict)
    flag: bool = False
    folder: Path = Path(".")


FULL = {
    "name": "n",
    "inner": {"width": 3, "rate": 1, "mode": "slow"},
    "maybe": {"width": 2},
    "limit": 7,
    "pair": [1, 2],
    "names": ["a", "b"],
    "bins": {"x": 1},
    "flag": True,
    "folder": "some/where",
}


def test_every_value_of_the_right_type_is_accepted():
    got = structure(Outer, FULL)
    assert got == Outer(
        name="n",
        inner=Inner(3, 1.0, "slow"),
        maybe=Inner(2),
        limit=7,
        pair=(1, 2),
        names=("a", "b"),
        bins={"x": 1},
        flag=True,
        folder=Path("some/where"),
    )
    assert isinstance(got.inner.rate, float)


def test_defaults_and_round_trip():
    assert structure(Outer, {"name": "n"}) == Outer("n")
    full = structure(Outer, FULL)
    assert structure(Outer, unstructure(full)) == full
    assert structure(Outer, full) is full


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"flagg": True}, ["unknown key 'flagg'", "did you mean 'flag'?"]),
        ({1: 2}, ["unknown key '1'", "known: name"]),
        ({"inner": {1: 2}}, ["unknown key 'inner.1'"]),
        ({"bins": {1: 2}}, ["bins", "must be str, got 1"]),
        ({"inner": {"widht": 1}}, ["unknown key 'inner.widht'", "did you mean 'width'?"]),
        ({"maybe": {"widht": 1}}, ["'maybe.widht'", "'width'"]),
        ({"inner": {"width": "3"}}, ["inner.width", "must be int", "'3'"]),
        ({"inner": {"width": True}}, ["inner.width", "must be int", "True"]),
        ({"inner": {"width": 3.0}}, ["inner.width", "must be int", "3.0"]),
        ({"inner": {"rate": "fast"}}, ["inner.rate", "must be float", "'fast'"]),
        ({"inner": {"rate": True}}, ["inner.rate", "must be float"]),
        ({"inner": {"mode": "fats"}}, ["inner.mode", "'fast' or 'slow'", "did you mean 'fast'?"]),
        ({"inner": {"width": -1}}, ["inner", "width must be positive, got -1"]),
        ({"inner": 3}, ["inner", "Inner", "3"]),
        ({"limit": "7"}, ["limit", "int or None", "'7'"]),
        ({"pair": [1, 2, 3]}, ["pair", "int or tuple[int, int]", "[1, 2, 3]"]),
        ({"names": "ab"}, ["names", "tuple[str, ...]", "'ab'"]),
        ({"names": ["a", 1]}, ["names", "tuple[str, ...]", "['a', 1]"]),
        ({"bins": {"x": "1"}}, ["bins.x", "must be int", "'1'"]),
        ({"bins": [1]}, ["bins", "dict[str, int]", "[1]"]),
        ({"flag": 1}, ["flag", "must be bool", "1"]),
        ({"name": None}, ["name", "must be str", "None"]),
        ({"folder": 3}, ["folder", "Path", "3"]),
    ],
)
def test_an_error_names_the_key_and_the_reason(change, parts):
    with pytest.raises(ConfigError) as caught:
        structure(Outer, {**FULL, **change})
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="missing key 'name'"):
        structure(Outer, {})


def test_all_problems_are_reported_at_once_under_the_given_path():
    with pytest.raises(ConfigError) as caught:
        structure(Outer, {"name": 1, "inner": {"width": "x"}, "bogus": 2}, where="model")
    for part in ("model.name", "model.inner.width", "'model.bogus'"):
        assert part in str(caught.value)


def test_a_config_must_be_a_table():
    with pytest.raises(ConfigError, match=r"model must be a table .* got 3"):
        structure(Outer, 3, where="model")
