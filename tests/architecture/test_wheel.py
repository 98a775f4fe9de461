"""The wheel holds every file of the packages: a forgotten template would fail only there."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a source tree")
def test_every_file_of_the_packages_is_in_the_wheel(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = []
    for folder, inside in (("clipseq", ROOT), ("plugins", ROOT / "plugins")):
        for file in (ROOT / folder).rglob("*"):
            made = "__pycache__" in file.parts or file.suffix in (".pyc", ".pyo")
            if file.is_file() and not made:
                name = file.relative_to(inside).as_posix()
                if name not in names:
                    missing.append(name)
    assert not missing, sorted(missing)
    assert "clipseq/py.typed" in names
    assert any(name.endswith(".template") for name in names)
