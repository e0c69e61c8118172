"""HTML pages of one file: frame, tables, and pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

_FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2em .8em .2em 0; text-align: left; vertical-align: top; }}
figure {{ display: inline-block; margin: 0 1em 1em 0; }}
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
{script}</body>
</html>
"""


def make_page(title: str, body: str, *, style: str = "", script: str = "") -> bytes:
    """A whole page; `style` is CSS beside that of every page, `title` plain text."""
    script = script and f"<script>\n{script}</script>\n"
    page = _FRAME.format(title=text(title), body=body, style=style, script=script)
    return page.encode("utf-8", errors="backslashreplace")


def text(value: object) -> str:
    """A value as text of a page."""
    return html.escape(str(value))


def row(cells: Iterable[object], *, kind: str = "", tag: str = "td") -> str:
    """A row of a table, of plain values; `kind` is its class."""
    inner = "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in cells)
    return f"<tr class={kind}>{inner}</tr>" if kind else f"<tr>{inner}</tr>"


def table(head: Sequence[object], rows: Iterable[str]) -> str:
    """A table of rows that :func:`row` made."""
    return "\n".join(["<table>", row(head, tag="th"), *rows, "</table>"])


def picture(pixels: np.ndarray, *, quality: int | None, profile: bytes | None = None) -> str:
    """Pixels uint8 (h, w, 1 or 3) as a data URI, WebP; without a `quality` nothing is lost."""
    encoded = io.BytesIO()
    coding = {"lossless": True} if quality is None else {"quality": quality}
    # A grey profile does not fit the colours that WebP has.
    profile = profile if pixels.shape[2] == 3 else None
    image = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())
    image.save(encoded, format="WEBP", icc_profile=profile, **coding)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
