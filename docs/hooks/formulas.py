r"""Formulas become MathML when the site is built; browsers draw it without scripts or fonts.

A formula is written as on GitHub, `$...$` in a line and `$$...$$` on its own, in LaTeX.
"""

import html
import re

from latex2mathml.converter import convert

# What the extension pymdownx.arithmatex makes of them.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\(|\[)(?P<latex>.*?)\\(?:\)|\])</(?P=tag)>', re.S
)


def on_page_content(content, page, config, files):
    """Replaces the formulas of a page."""
    return FORMULA.sub(mathml, content)


def mathml(found):
    """Returns the MathML of a formula."""
    display = "block" if found["tag"] == "div" else "inline"
    return convert(html.unescape(found["latex"]).strip(), display=display)
