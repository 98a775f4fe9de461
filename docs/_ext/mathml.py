"""Formulas as MathML, which browsers draw themselves: a page needs no script and no network."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# What docutils does not read: sizes (delimiters stretch by themselves) and one way to write dots.
_UNREAD = ((r"\\[bB]ig(?![a-zA-Z])", ""), (r"\\dots(?![a-zA-Z])", r"\\ldots"))


def mathml(formula: str, *, block: bool) -> str:
    """The MathML of a LaTeX formula.

    Raises:
        MathError: a command that docutils does not know.
    """
    for pattern, replacement in _UNREAD:
        formula = re.sub(pattern, replacement, formula)
    return tex2mathml(formula, as_block=block)


def _write(translator: Any, node: nodes.Node, *, block: bool) -> None:
    try:
        translator.body.append(mathml(node.astext(), block=block))
    except MathError as error:
        logger.warning("%s: %s", error, node.astext(), location=node)
    raise nodes.SkipNode


def _inline(translator: Any, node: nodes.math) -> None:
    _write(translator, node, block=False)


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    try:
        _write(translator, node, block=True)
    finally:
        translator.body.append("</div>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; conf.py chooses it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
