"""Pieces of an HTML page that is one file: it loads nothing, neither from disk nor network."""

from __future__ import annotations

import base64
import html
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { margin-bottom: 0; }
h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem 1rem .2rem 0; text-align: left;
         vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--soft); overflow: auto; padding: .8rem; max-height: 40rem;
      white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
img { max-width: 100%; background: white; }
img.pixels { image-rendering: pixelated; min-width: 60%; }
figcaption, .lead { opacity: .75; }
summary { cursor: pointer; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a page. `parts` are HTML, the title is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(part for part in parts if part) + "\n"
        "</body>\n</html>\n"
    )


def text(words: object, tag: str = "p", kind: str = "") -> str:
    """Returns an element that holds text, which is escaped."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<{tag}{attribute}>{html.escape(str(words))}</{tag}>"


def bullets(lines: Iterable[object]) -> str:
    """Returns a list; empty if there is nothing to list."""
    items = "\n".join(text(line, "li") for line in lines)
    return f"<ul>\n{items}\n</ul>" if items else ""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    numbers: Sequence[int] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """Returns a table; empty if there are no rows.

    Args:
        head: the titles of its columns.
        rows: the cells, as text.
        numbers: the columns that are numbers, which stand on the right.
        links: of cells, the addresses that they lead to.
    """
    links = links or {}

    def cell(words: Any, tag: str, column: int) -> str:
        kind = ' class="number"' if column in numbers else ""
        shown = html.escape(str(words))
        if tag == "td" and (address := links.get(str(words))) is not None:
            shown = f'<a href="{html.escape(address)}">{shown}</a>'
        return f"<{tag}{kind}>{shown}</{tag}>"

    def row(cells: Sequence[Any], tag: str) -> str:
        return f"<tr>{''.join(cell(c, tag, column) for column, c in enumerate(cells))}</tr>"

    body = [row(cells, "td") for cells in rows]
    return "\n".join(["<table>", row(head, "th"), *body, "</table>"]) if body else ""


def folded(title: str, content: str) -> str:
    """Returns HTML that is shown after a click; empty if there is none."""
    return f"<details>\n{text(title, 'summary')}\n{content}\n</details>" if content else ""


def picture(path: Path, caption: str, kind: str = "") -> str:
    """Returns a picture, whose bytes are in the page.

    Args:
        path: its file, PNG or SVG.
        caption: stands below it.
        kind: `pixels` for one that is made of small images, which are shown larger.
    """
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{mimetypes.guess_type(path)[0]};base64,{content}"
    attribute = f' class="{kind}"' if kind else ""
    words = html.escape(caption)
    return (
        f'<figure>\n<img{attribute} alt="{words}" src="{source}">\n'
        f"<figcaption>{words}</figcaption>\n</figure>"
    )
