"""Formulas as MathML, which browsers draw by themselves: pages need no script from elsewhere, and read offline."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging
from sphinx.util.math import wrap_displaymath

logger = logging.getLogger(__name__)


def formula(node: nodes.Node, latex: str, display: str) -> str:
    """Return a formula; a command that is not known is a warning."""
    markup = convert(latex, display=display)
    if "\\" in markup or "<mi>&</mi>" in markup:
        logger.warning("formula that MathML cannot show: %s", latex, location=node)
    return markup


def inline(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(formula(node, node.astext(), "inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    latex = wrap_displaymath(node.astext(), None, False).strip()
    latex = latex.removeprefix("\\begin{equation*}").removesuffix("\\end{equation*}").strip()
    self.body.append(self.starttag(node, "div", CLASS="math-block") + formula(node, latex, "block") + "</div>")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
