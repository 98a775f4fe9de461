"""Docstrings as the house writes them, for autodoc.

Sections are Google's. A name in single backticks is a link where it names something that is on
the site, and code where it does not: arguments, values of options and names of the API stand in the
same backticks. The same holds for types in signatures, where other libraries' and private ones
occur. So nothing is said about a name that is not found there; in a page's text it is a warning.
"""

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

WITHOUT_WARNING = "api"
"""The page that consists of docstrings."""

_GOOGLE = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)


def _read_sections(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    # To napoleon a property's "Before the colon: after it" would be a type and a meaning.
    what = "method" if what in ("property", "attribute", "data") else what
    lines[:] = GoogleDocstring(lines, _GOOGLE, app, what, name, obj, options).lines()


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


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role, which conf.py makes the default, and the sections."""
    app.add_role("name", _name)
    app.connect("autodoc-process-docstring", _read_sections)
    app.connect("missing-reference", _not_found)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
