"""Read the imports of a source tree with ast, without importing any of it."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    """One imported name."""

    line: int
    module: str
    """The module named after `from` or `import`."""
    name: str | None
    """The name that is taken from it; None for ``import module``."""


def module_files(root: Path, package: str) -> dict[str, Path]:
    """Return dotted module name -> file, for a package that lies in `root`."""
    files = {}
    for file in sorted((root / package).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imports(file: Path) -> list[Import]:
    """Return every import of a file that runs, including imports inside functions.

    Imports under ``if TYPE_CHECKING:`` are left out, because they never run.
    """
    found: list[Import] = []
    for node in _running(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import by the full name of the module"
            assert node.module is not None
            found += [Import(node.lineno, node.module, alias.name) for alias in node.names]
    return found


def lazy_modules(file: Path) -> list[Import]:
    """Return the modules that a package's `__getattr__` imports; `__init__` names them in strings.

    Any string in an `__init__.py` counts; the caller picks those that name a module.
    """
    if file.name != "__init__.py":
        return []
    return [
        Import(node.lineno, node.value, None)
        for node in _running(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def imported_modules(name: str, files: Mapping[str, Path]) -> dict[str, int]:
    """Return the modules of `files` that the module `name` imports -> the line of the import.

    ``from clipseq.data import files`` imports `clipseq.data.files` if there is such a module, and
    otherwise `clipseq.data`. ``from clipseq import __version__`` is left out: the version is a
    constant that the package has before it imports anything.
    """
    found: dict[str, int] = {}
    for line, module, taken in (*imports(files[name]), *lazy_modules(files[name])):
        submodule = f"{module}.{taken}"
        target = submodule if submodule in files else module
        if target in files and target != name and taken != "__version__":
            found.setdefault(target, line)
    return found


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node except those under ``if TYPE_CHECKING:``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for node in child.orelse:
                yield from _running(node)
        else:
            yield from _running(child)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
