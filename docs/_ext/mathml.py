"""Formulas as MathML, which browsers draw themselves: a page needs no script and no network."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# What docutils does not read as LaTeX does.
_UNREAD = (
    (r"\\(big|Big)(?=[(\[/])", r"\\\1l"),
    (r"\\(big|Big)(?=[)\]])", r"\\\1r"),
    (r"\\dots(?![a-zA-Z])", r"\\ldots"),
    (r"\\([td]?frac)(\d)(\d)", r"\\\1{\2}{\3}"),
    (r"\\hat (\w)(_\w)", r"\\hat{\1\2}"),  # it puts what follows an accent below it
)


def mathml(formula: str, *, block: bool) -> str:
    """The MathML of a LaTeX formula.

    Raises:
        MathError: a command that docutils does not know.
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
    for formula in re.split(r"\n\s*\n", node.astext()):  # a blank line starts a new one
        _write(translator, node, formula, block=True)
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; conf.py chooses it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
