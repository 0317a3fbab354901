"""Blocks as one HTML page that needs no other file, no network and no script, for a light and a dark theme.

Every string is escaped; drawings are inline SVG whose text has the page's own colour; images are PNG at their own size, which
the browser enlarges without smoothing.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from zlib import crc32

from markdown_it import MarkdownIt

from steindiff.report.blocks import Block, Bullets, Code, Details, Entry, Figure, Heading, Markup, Part, Strips, Table, Text

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).disable("image")


def page(title: str, blocks: Sequence[Block]) -> str:
    """A whole HTML document."""
    sections = [b for b in blocks if isinstance(b, Heading) and b.level == 2]
    contents = "".join(f'<li><a href="#{s.anchor}">{_inline(s.text)}</a></li>' for s in sections)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(map(_block, blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n<nav><ul>{contents}</ul></nav>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{block.anchor}">{_inline(text)}</h{level}>'
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table(columns, rows):
            return _table("", columns, [(first, list(map(_cell, rest))) for first, *rest in rows])
        case Figure(name, caption, _, svg):
            prefix = f"f{crc32(name.encode()):x}-"  # no other drawing of the page has the same ids
            drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
            label = escape(caption, quote=True)
            return f'<figure role="group" aria-label="{label}">{drawing}<figcaption>{escape(caption)}</figcaption></figure>'
        case Strips(_, caption, _, columns, strips):
            images = [(label, [_image(p, f"{label}, {c}") for p, c in zip(row, columns, strict=True)]) for label, row in strips]
            table = _table(' class="strips"', ("", *columns), images)
            return f"<figure>{table}<figcaption>{escape(caption)}</figcaption></figure>"
        case Details(summary, blocks) | Part(_, summary, blocks):
            inner = "\n".join(map(_block, blocks))
            return f"<details><summary>{_inline(summary)}</summary>\n{inner}\n</details>"


def _inline(text: str | Entry) -> str:
    return str(_MARKDOWN.renderInline(text)) if isinstance(text, Markup) else escape(str(text))


def _table(attributes: str, columns: Sequence[str], rows: Sequence[tuple[str | Entry, Sequence[str]]]) -> str:
    """Rows of a label and whole cells."""
    head = "".join(f'<th scope="col">{_inline(c)}</th>' for c in columns)
    body = "\n".join(f'<tr><th scope="row">{_inline(label)}</th>{"".join(cells)}</tr>' for label, cells in rows)
    table = f"<table{attributes}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cell(entry: str | Entry) -> str:
    if isinstance(entry, str):
        return f"<td>{_inline(entry)}</td>"
    mark = f' class="{escape(entry.mark, quote=True)}"' if entry.mark else ""
    change = f"<small>{escape(entry.change)}</small>" if entry.change else ""
    return f"<td{mark}>{'<br>'.join(part for part in (_inline(entry.text), change) if part)}</td>"


def _image(png: bytes, label: str) -> str:
    if not png:
        return "<td>–</td>"
    return f'<td><img alt="{escape(label, quote=True)}" src="data:image/png;base64,{b64encode(png).decode()}"></td>'
