"""Directives that take their content from the code, so that pages follow it at the next build.

- ``{config-keys} CLASS`` with ``:table: training``: every key of a table of the configuration.
- ``{similarity-options} NAME``: every option of a registered similarity.
- ``{cost} NAME``: the cost in a similarity's docstring.
- ``{command} NAME``: usage, arguments and options of a command.
- ``{pytest-options}``: the options that clipseq adds to pytest.
- ``{public-packages} ROOT``: a section for every package with an ``__all__``.
- ``{checks}``: every check of `clipseq.testing`.

Each writes MyST, which is parsed as part of the page. Names, types and defaults come from
signatures, and meanings from the sections of docstrings; a key without a meaning is a warning.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import attrs
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from clipseq.cli.keys import Key, keys_of

logger = logging.getLogger(__name__)


def readable_type(kind: Any) -> str:
    """Return a type in the words of a configuration: "whole number", "path", "table"."""
    if get_origin(kind) is Literal:
        return " or ".join(f'`"{choice}"`' for choice in get_args(kind))
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        members = [member for member in get_args(kind) if member is not type(None)]
        return " or ".join(dict.fromkeys(readable_type(member) for member in members))
    if get_origin(kind) is tuple:
        return f"list of {len(get_args(kind))}"
    if attrs.has(kind) or get_origin(kind) in (dict, Mapping) or kind in (dict, Mapping):
        return "table"
    plain = {
        int: "whole number",
        float: "number",
        bool: "true or false",
        str: "string",
    }
    if kind in plain:
        return plain[kind]
    return kind.__name__.lower() if isinstance(kind, type) else str(kind)


def shown_default(default: Any) -> str:
    """Return a default in the syntax of a configuration."""
    if type(default).__name__ == "DefaultValue":
        # autodoc may have replaced the default with its source text.
        try:
            default = ast.literal_eval(default.name)
        except ValueError:
            return f"`{default.name}`"
    if default in (inspect.Parameter.empty, attrs.NOTHING):
        return "none, required"
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`'
    if isinstance(default, Mapping):
        return "`{" + ", ".join(f"{key} = {value!r}" for key, value in default.items()) + "}`"
    return f"`{default!r}`"


class _Generated(SphinxDirective):
    """A directive that writes MyST."""

    def markdown(self) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.markdown())

    def entry(self, key: Key, name: str) -> str:
        if not key.meaning:
            logger.warning("%s has no meaning in a docstring", name, location=self.get_location())
        return (
            f"````{{confval}} {name}\n:type: {readable_type(key.kind)}\n"
            f":default: {shown_default(key.default)}\n\n{_sentence(_markdown(key.meaning))}\n````\n"
        )


def _markdown(text: str) -> str:
    # Double backticks mark code in both formats; "see `name`" becomes a link.
    return re.sub(r"^see `([\w.]+)`\.?$", r"See {py:class}`\1`.", text)


class ConfigKeys(_Generated):
    """The keys of one table, from an attrs class or from a class's keyword arguments."""

    required_arguments = 1
    option_spec: ClassVar = {
        "table": directives.unchanged_required,
        "leave-out": directives.unchanged,
    }

    def markdown(self) -> str:
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        prefix = self.options["table"] + "." if self.options.get("table") else ""
        leave_out = tuple(self.options.get("leave-out", "").split())
        return "\n".join(
            self.entry(key, prefix + key.name) for key in keys_of(cls, leave_out=leave_out)
        )


class SimilarityOptions(_Generated):
    """The options of a registered similarity, except `embed_dim`, which every similarity has."""

    required_arguments = 1

    def markdown(self) -> str:
        from clipseq import available_similarities

        info = available_similarities()[self.arguments[0]]
        return "\n".join(self.entry(key, f"{info.name}.{key.name}") for key in keys_of(info.cls))


class Cost(_Generated):
    """The cost of a registered similarity, from its docstring."""

    required_arguments = 1

    def markdown(self) -> str:
        from clipseq import available_similarities

        docstring = inspect.getdoc(available_similarities()[self.arguments[0]].cls) or ""
        found = re.search(r"\bCost:\s+(.*?)(?=\n\n|\Z)", docstring, re.DOTALL)
        if found is None:
            logger.warning("no cost in the docstring", location=self.get_location())
            return ""
        return f"**Cost.** {_sentence(found[1])}"


class Command(_Generated):
    """Usage, arguments and options of a command, or, without a name, of ``clipseq`` itself."""

    optional_arguments = 1

    def markdown(self) -> str:
        from typer.main import get_command

        from clipseq.cli.app import app

        group: Any = get_command(app)
        command: Any = group.commands[self.arguments[0]] if self.arguments else group
        program = " ".join(["clipseq", *self.arguments])
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        names = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
        usage = [program, *(["[OPTIONS]"] if options else []), *names]
        if not self.arguments:
            usage.append("COMMAND ...")
        parts = [
            textwrap.dedent(command.help or "").strip(),
            f"```text\n{' '.join(usage)}\n```",
            f"```{{program}} {program}\n```",
            *(_option(p.name, p) for p in arguments),
            *(_option(", ".join(_with_value(name, p) for name in p.opts), p) for p in options),
        ]
        return "\n\n".join(parts)


def _with_value(name: str, parameter: Any) -> str:
    return name if parameter.is_flag else f"{name} {parameter.name.upper()}"


def _option(signature: str, parameter: Any) -> str:
    notes = []
    if parameter.required:
        notes.append("Required.")
    elif parameter.default is not None and parameter.default is not False:
        notes.append(f"Default: `{parameter.default}`.")
    return f"````{{option}} {signature}\n{parameter.help or ''} {' '.join(notes)}\n````"


class PytestOptions(_Generated):
    """The options that clipseq adds to ``pytest``."""

    def markdown(self) -> str:
        from _pytest.config.argparsing import Parser

        import pytest_clipseq

        parser = Parser(_ispytest=True)
        pytest_clipseq.pytest_addoption(parser)
        parts = ["```{program} pytest\n```"]
        for option in parser.getgroup("clipseq").options:
            shown = option.attrs()
            signature = f"{option.names()[0]} {shown['metavar']}"
            parts.append(f"````{{option}} {signature}\n{_sentence(shown['help'])}\n````")
        return "\n\n".join(parts)


class Checks(_Generated):
    """Every check with its promise and the first place to look if it fails."""

    def markdown(self) -> str:
        from clipseq.testing import CHECKS

        rows = [
            f"| `{check.name}` | {_cell(check.promise)} | {_cell(check.look_at)} |"
            for check in CHECKS.values()
        ]
        head = ["| check | promise | where to look when it breaks |", "|---|---|---|"]
        return "\n".join([*head, *rows])


class PublicPackages(_Generated):
    """Every package and module below one that has an ``__all__``."""

    required_arguments = 1

    def markdown(self) -> str:
        root = importlib.import_module(self.arguments[0])
        described = [getattr(root, name) for name in root.__all__]
        parts = []
        for name in sorted(_with_all(root)):
            module = importlib.import_module(name)
            # A name that several modules export is documented in the outermost of them.
            left_out = [
                n for n in module.__all__ if any(getattr(module, n) is d for d in described)
            ]
            described += [getattr(module, n) for n in module.__all__]
            excluded = f"   :exclude-members: {', '.join(left_out)}\n" if left_out else ""
            names = [n for n in module.__all__ if n not in left_out]
            data = "".join(_lazy(module, n) + _data(module, n) for n in names)
            parts.append(
                f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n{excluded}\n{data}```\n"
            )
        return "\n".join(parts)

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.markdown(), allow_section_headings=True)


def _lazy(module: ModuleType, name: str) -> str:
    """Return the entry of a name that the module's ``__getattr__`` gives, which autodoc misses."""
    value = getattr(module, name)
    kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else ""
    return f"\n.. auto{kind}:: {name}\n" if kind and name not in vars(module) else ""


def _data(module: ModuleType, name: str) -> str:
    """Return the entry of a constant with the string below its definition, which autodoc misses."""
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return ""
    if inspect.isroutine(function := getattr(value, "fn", None)):  # compiled by Triton
        arguments = ", ".join(inspect.signature(function).parameters)
        text = textwrap.indent(inspect.getdoc(function) or "", "   ")
        return f"\n.. py:function:: {name}({arguments})\n   :module: {module.__name__}\n\n{text}\n"
    for other, defining in list(sys.modules.items()):
        if other.startswith(module.__name__) and getattr(defining, name, None) is value:
            meaning = ModuleAnalyzer.for_module(other).find_attr_docs().get(("", name))
            if meaning:
                text = textwrap.indent("\n".join(meaning), "   ")
                return f"\n.. py:data:: {name}\n   :module: {module.__name__}\n\n{text}\n"
    logger.warning("%s.%s must have a docstring below it", module.__name__, name)
    return ""


def _with_all(root: ModuleType) -> Iterator[str]:
    for found in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
        spec = importlib.util.find_spec(found.name)
        # Files are read, not imported, because private modules may need extras.
        if spec and spec.origin and "\n__all__ = " in Path(spec.origin).read_text("utf-8"):
            yield found.name


def _sentence(text: str) -> str:
    # Names such as torch.compile, or a w from a formula, keep their case.
    return text if re.match(r"torch|[a-z],", text) else text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    # Text between backticks is code already.
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([|*_])", r"\\\1", p) for p in parts)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("config-keys", ConfigKeys)
    app.add_directive("similarity-options", SimilarityOptions)
    app.add_directive("cost", Cost)
    app.add_directive("command", Command)
    app.add_directive("pytest-options", PytestOptions)
    app.add_directive("checks", Checks)
    app.add_directive("public-packages", PublicPackages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
