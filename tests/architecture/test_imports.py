"""The helpers of this folder find every import that runs, and no others."""

from pathlib import Path
from textwrap import dedent

import pytest
from imports import Import, imported_modules, imports, module_files


@pytest.fixture
def house(tmp_path: Path):
    """Write files of a package `house`, and return name -> file of its modules."""

    def write(**sources: str):
        for name, source in sources.items():
            file = tmp_path / "house" / f"{name.replace('__in_', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(source))
        return module_files(tmp_path, "house")

    return write


def test_imports_inside_functions_are_seen_and_types_are_not(house) -> None:
    files = house(
        a="""
        import os.path
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from house.b import Type
        else:
            from house.c import other
        def late():
            try:
                from house.d import one, two as three
            except ImportError:
                import house.e
        """
    )
    assert imports(files["house.a"]) == [
        Import(2, "os.path", None),
        Import(3, "typing", "TYPE_CHECKING"),
        Import(7, "house.c", "other"),
        Import(10, "house.d", "one"),
        Import(10, "house.d", "two"),
        Import(12, "house.e", None),
    ]


def test_a_submodule_is_told_from_a_name(house) -> None:
    files = house(
        __init__="",
        b="",
        room__in___init__="NAMES = {'Late': 'house.b', 'c': 'nowhere'}",
        room__in_inner="",
        a="from house.room import inner, Late\nfrom house import __version__",
    )
    assert set(files) == {"house", "house.a", "house.b", "house.room", "house.room.inner"}
    assert imported_modules("house.a", files) == {"house.room.inner": 1, "house.room": 1}
    assert imported_modules("house.room", files) == {"house.b": 1}


def test_relative_imports_are_refused(house) -> None:
    with pytest.raises(AssertionError, match="import by the full name"):
        imports(house(a="from . import b")["house.a"])
