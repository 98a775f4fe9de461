"""Formulas as MathML, which browsers render without scripts and network access."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# Constructs that docutils reads differently from LaTeX.
_UNREAD = (
    (r"\\(big|Big)(?=[(\[/])", r"\\\1l"),
    (r"\\(big|Big)(?=[)\]])", r"\\\1r"),
    (r"\\dots(?![a-zA-Z])", r"\\ldots"),
    (r"\\([td]?frac)(\d)(\d)", r"\\\1{\2}{\3}"),
    (r"\\hat (\w)(_\w)", r"\\hat{\1\2}"),  # otherwise the subscript lands below the accent
)


def mathml(formula: str, *, block: bool) -> str:
    """Return the MathML of a LaTeX formula.

    Raises:
        MathError: docutils does not know a command.
    """
    for pattern, replacement in _UNREAD:
        formula = re.sub(pattern, replacement, formula)
    return tex2mathml(formula, as_block=block)


def _write(translator: Any, node: nodes.Node, formula: str, *, block: bool) -> None:
    try:
        translator.body.append(mathml(formula, block=block))
    except MathError as error:
        logger.warning("%s: %s", error, formula, location=node)


def _inline(translator: Any, node: nodes.math) -> None:
    _write(translator, node, node.astext(), block=False)
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    for formula in re.split(r"\n\s*\n", node.astext()):  # a blank line separates formulas
        _write(translator, node, formula, block=True)
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; conf.py chooses it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
