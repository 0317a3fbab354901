"""The blocks a report is made of, and one HTML page of them that needs no other file, no network and no script.

Every string is escaped; drawings are inline SVG whose text has the page's own colour, so that both colour themes are readable;
images are PNG at their own size, enlarged by the browser without smoothing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple, TypeAlias
from zlib import crc32

__all__ = [
    "Block", "Bullets", "Code", "Details", "Drawing", "Entry", "Heading", "Part", "Strips", "Table", "Text", "page", "slug",
]  # fmt: skip


class Entry(NamedTuple):
    """One cell of a table: a value, the change it is after, and the verdict, a CSS class; its sign stands in the text too."""

    text: str
    change: str = ""
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.change})" if self.text and self.change else self.text or self.change


@dataclass(frozen=True)
class Heading:
    """A heading; 2 is a section."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to be copied as they are."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; every row has as many cells as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | Entry, ...], ...]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of lines: as PNG on white, and as SVG in the page's colours."""

    name: str
    caption: str
    png: bytes
    svg: str


@dataclass(frozen=True, eq=False)
class Strips:
    """Rows of sample images: `png` is a picture of all, `rows` hold each strip as a PNG at its own size, empty for none."""

    name: str
    caption: str
    png: bytes
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[bytes, ...]], ...]


@dataclass(frozen=True)
class Details:
    """Blocks folded away under a line of text."""

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Part:
    """Blocks folded away on the page, and a file of their own beside a Markdown report."""

    name: str
    summary: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Heading | Text | Bullets | Code | Table | Drawing | Strips | Details | Part


def page(title: str, blocks: Sequence[Block]) -> str:
    """A whole HTML document."""
    sections = [b.text for b in blocks if isinstance(b, Heading) and b.level == 2]
    contents = "".join(f'<li><a href="#{slug(s)}">{escape(s)}</a></li>' for s in sections)
    body = "\n".join(map(_block, blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>\n{_STYLE}</style>\n</head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n<nav><ul>{contents}</ul></nav>\n{body}\n</body>\n</html>\n"
    )


def slug(text: str) -> str:
    """A heading's anchor.

    Example:
        >>> slug("Losses, cell by cell")
        'losses-cell-by-cell'
    """
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{slug(text)}">{escape(text)}</h{level}>'
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table():
            return _table(block)
        case Drawing():
            svg = _own_ids(block.svg, f"f{crc32(block.name.encode()):x}")
            label = escape(block.caption, quote=True)
            return f'<figure role="group" aria-label="{label}">{svg}<figcaption>{escape(block.caption)}</figcaption></figure>'
        case Strips():
            return _strips(block)
        case Details(summary, blocks) | Part(_, summary, blocks):
            inner = "\n".join(map(_block, blocks))
            return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in table.columns)
    rows = []
    for first, *rest in table.rows:
        cells = "".join(map(_cell, rest))
        rows.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(entry: str | Entry) -> str:
    if isinstance(entry, str):
        return f"<td>{escape(entry)}</td>"
    mark = f' class="{escape(entry.mark, quote=True)}"' if entry.mark else ""
    change = f"<small>{escape(entry.change)}</small>" if entry.change else ""
    return f"<td{mark}>{'<br>'.join(part for part in (escape(entry.text), change) if part)}</td>"


def _strips(strips: Strips) -> str:
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in ("", *strips.columns))
    rows = []
    for label, images in strips.rows:
        cells = "".join(f"<td>{_image(image, f'{label}, {c}')}</td>" for image, c in zip(images, strips.columns, strict=True))
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    table = (
        f'<div class="scroll"><table class="strips"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    return f"<figure>{table}<figcaption>{escape(strips.caption)}</figcaption></figure>"


def _image(png: bytes, label: str) -> str:
    if not png:
        return "–"
    return f'<img alt="{escape(label, quote=True)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _own_ids(svg: str, prefix: str) -> str:
    """Ids that no other drawing of the page has."""
    named = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", named)


# Okabe–Ito blue and vermilion for better and worse; the sign beside a number says the same.
_STYLE = """:root { color-scheme: light dark; --ink: #1b1e21; --paper: #ffffff; --line: #c9ced3; --soft: #f3f5f7;
  --win: #00568a; --loss: #a63c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #14171a; --line: #3d444b; --soft: #1e2327;
  --win: #6cc4f5; --loss: #ff9a5c; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto;
  padding: 1rem 1.5rem 4rem; }
a { color: var(--win); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top;
  white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); }
td.win small { color: var(--win); font-weight: 600; }
td.loss small, td.diverged, td.diverged small { color: var(--loss); font-weight: 600; }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; color: var(--ink); }
figcaption { font-size: .85rem; }
.strips img { height: 40px; image-rendering: pixelated; display: block; }
.strips td, .strips th { border: 0; padding: .1rem .5rem; vertical-align: middle; }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }
details { border: 1px solid var(--line); border-radius: 4px; padding: .3rem .8rem; margin: .6rem 0; }
summary { cursor: pointer; }
"""
