"""A built-in similarity uses only what any third party may use."""

from pathlib import Path

import pytest
from imports import imports, module_files

import clipseq
from clipseq import engine

PLUGINS = Path(clipseq.__file__).parents[1] / "plugins"
if not PLUGINS.is_dir():  # in a wheel, where the five lie beside clipseq
    PLUGINS = PLUGINS.parent

BUILT_INS = [f"clipseq_{name}" for name in ("global", "local", "attention", "temporal", "combined")]


@pytest.mark.parametrize("package", BUILT_INS)
def test_a_built_in_imports_public_names_only(package: str) -> None:
    public = {"clipseq": set(clipseq.__all__), "clipseq.engine": set(engine.__all__)}
    files = module_files(PLUGINS, package)
    assert files
    private = [
        f"{file.name}:{line} imports {module}{f'.{name}' if name else ''}"
        for file in files.values()
        for line, module, name in imports(file)
        # Its own modules, and libraries that are not ours.
        if module.split(".")[0].startswith("clipseq") and module.split(".")[0] != package
        # A module that is imported whole hides which of its names are used.
        if name is None or name not in public.get(module, ())
    ]
    assert not private, "\n".join(private)
