"""Docstrings in the style of this project, for autodoc.

Sections follow Google's style. A name in single backticks becomes a link if it is documented on the
site, and code otherwise, because arguments and values of options use the same backticks. The same
holds for types in signatures, which may be private or from other libraries. A missing name is
therefore a warning in the text of a page, but not in a docstring.
"""

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

WITHOUT_WARNING = "api"
"""The page that consists of docstrings, for which missing names are not warnings."""

_GOOGLE = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)


class _Docstring(GoogleDocstring):
    """A docstring whose section Returns is plain text, even if it contains a colon."""

    def _consume_returns_section(
        self, preprocess_types: bool = False
    ) -> list[tuple[str, str, list[str]]]:
        lines = self._dedent(self._consume_to_next_section())
        return [("", "", lines)] if lines else []


def _read_sections(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    # In a property, napoleon would read "Before: after" as a type and its meaning.
    what = "method" if what in ("property", "attribute", "data") else what
    lines[:] = _Docstring(lines, _GOOGLE, app, what, name, obj, options).lines()


def _name(
    role: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Any,
    options: object = None,
    content: object = (),
) -> tuple[list[nodes.Node], list[Any]]:
    environment = inliner.document.settings.env
    reference = addnodes.pending_xref(
        rawtext,
        nodes.literal(rawtext, text, classes=["xref", "py"]),
        refdomain="py",
        reftype="obj",
        reftarget=text.removesuffix("()"),
        refdoc=environment.docname,
        in_docstring=True,
        **{key: environment.ref_context.get(key) for key in ("py:module", "py:class")},
    )
    return [reference], []


def _not_found(
    app: Sphinx, env: object, node: addnodes.pending_xref, content: nodes.Node
) -> nodes.Node | None:
    if node.get("in_docstring"):
        return content
    silent = node.get("refdomain") == "py" and node.get("refdoc") == WITHOUT_WARNING
    return content if silent else None


def _dash(app: Sphinx, doctree: nodes.document) -> None:
    # Sphinx puts " -- " between an argument and its meaning, and smart quotes are off.
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role, which conf.py makes the default, and the sections."""
    app.add_role("name", _name)
    app.connect("autodoc-process-docstring", _read_sections)
    app.connect("missing-reference", _not_found)
    app.connect("doctree-read", _dash)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
