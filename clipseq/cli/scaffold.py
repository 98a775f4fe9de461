"""New plugins: a folder with a package that installs, registers, and passes its tests.

The text of its files is in `templates/`.
"""

import keyword
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

import clipseq
from clipseq.errors import PluginError
from clipseq.registry import available_similarities
from clipseq.registry.discovery import GROUP

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def new_plugin(name: str, directory: str | os.PathLike[str] = ".") -> Path:
    """Write the package ``clipseq-NAME`` into a new folder of that name inside `directory`.

    The package has a pyproject.toml with the entry point, the module ``clipseq_NAME`` with a
    working example (the best match of every step), tests that run `clipseq.testing`, and a README
    that explains what to change. Underscores in `name` become dashes in the distribution's name.

    After an error, no folder is left; existing files are never changed.

    Args:
        name: name of the similarity.
        directory: an existing folder.

    Returns:
        The path of the new folder.

    Raises:
        ValueError: the name is not allowed, or an installed plugin or module has it already.
        FileExistsError: the folder exists.
        NotADirectoryError: `directory` is not a folder.
    """
    _check_name(name)
    directory = Path(directory)
    if not directory.is_dir():
        raise NotADirectoryError(
            f"directory must be an existing folder, got {directory}; create it, or choose another"
        )
    names = {
        "name": name,
        "Name": name.replace("_", " ").capitalize(),
        "module": f"clipseq_{name}",
        "distribution": f"clipseq-{name.replace('_', '-')}",
        "class_name": "".join(word.capitalize() for word in name.split("_")) + "Similarity",
        "clipseq_version": clipseq.__version__,
    }
    target = directory / names["distribution"]
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already; move it away, or choose another folder")
    with tempfile.TemporaryDirectory(prefix=".clipseq-", dir=directory) as staging:
        written = Path(staging) / target.name
        for path, text in _render_files(names).items():
            (written / path).parent.mkdir(parents=True, exist_ok=True)
            (written / path).write_text(text, encoding="utf-8")
        # This fails if a folder with any content was created at `target` in the meantime.
        written.rename(target)
    return target


def _render_files(names: Mapping[str, str]) -> dict[str, str]:
    paths = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
        f"{names['module']}.py": "module.py",
        f"tests/test_{names['name']}.py": "test.py",
    }
    templates = files("clipseq.cli") / "templates"
    return {
        path: Template((templates / f"{template}.template").read_text("utf-8")).substitute(names)
        for path, template in paths.items()
    }


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            "name must match [a-z][a-z0-9_]*, with single underscores between words (it becomes "
            f"part of a distribution's name), got {name!r}"
        )
    if keyword.iskeyword(name):
        raise ValueError(f"name must not be a keyword of Python, got {name!r}; choose another")
    with warnings.catch_warnings():
        # Other plugins may be broken, but their names are taken nevertheless.
        warnings.simplefilter("ignore")
        try:
            infos = available_similarities()
        except PluginError:
            infos = {}
    if name in infos:
        info = infos[name]
        raise ValueError(
            f"the name {name!r} is taken: {info.cls.__qualname__} of {info.distribution} "
            f"{info.version}".rstrip()
            + "; choose another"
        )
    for entry_point in entry_points(group=GROUP, name=name):
        owner = entry_point.dist.name if entry_point.dist else entry_point.value
        raise ValueError(f"the name {name!r} is taken by the plugin of {owner}; choose another")
    if find_spec(f"clipseq_{name}") is not None:
        raise ValueError(f"a module clipseq_{name} is installed already; choose another name")
