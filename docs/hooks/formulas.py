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
    made = convert(html.unescape(found["latex"]).strip(), display=display)
    # A function stands apart from its argument, and a relation from both of its sides.
    made = made.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.167em"/>')
    return made.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")
