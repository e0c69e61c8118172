"""What Markdown leaves to do: formulas become MathML, and roles of docstrings go.

Browsers draw MathML by themselves: no script and no fonts to fetch.
"""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL
)
_ROLE = re.compile(r":(?:attr|class|func|meth):(?=<code)")


def on_page_content(content: str, **_: object) -> str:
    """The HTML of a page, as arithmatex and mkdocstrings made it."""

    def mathml(found: re.Match[str]) -> str:
        return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")

    return _ROLE.sub("", _FORMULA.sub(mathml, content))
