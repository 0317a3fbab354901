"""The blocks that every report is made of; `markdown`, `page` and `terminal` render them.

A report is a sequence of blocks. Its texts are plain: each renderer escapes them. A `Markup` is the exception, for our own
emphasis and code: `Markup("*Floor*: a perfect sampler's score")`.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from steindiff.io.names import cut


class Markup(str):
    """One paragraph of Markdown, wherever a block holds text. Foreign names in it must pass through `markdown.escape`."""


class Entry(NamedTuple):
    """One cell of a table: a value, its change, and the verdict on the change as a CSS class; the text holds its sign too."""

    text: str
    change: str = ""
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.change})" if self.text and self.change else self.text or self.change


class Heading(NamedTuple):
    """A heading; level 2 is a section."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """Its name as the end of a link."""
        return slug(self.text)


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list."""

    items: tuple[str, ...]


class Code(NamedTuple):
    """Lines to be copied as they are."""

    text: str


class Table(NamedTuple):
    """A table whose first column names its rows; every row has as many cells as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | Entry, ...], ...]


class Figure(NamedTuple):
    """A figure of lines, by `figures.drawing`: a PNG on white, and inline SVG; `name` is the file's path without suffix."""

    name: str
    caption: str
    png: bytes
    svg: str


class Strips(NamedTuple):
    """Rows of images, by `figures.strips`: a PNG of all, and for each row its label and strips as PNG (empty: no images)."""

    name: str
    caption: str
    png: bytes
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[bytes, ...]], ...]


class Details(NamedTuple):
    """Blocks folded away under a line of text."""

    summary: str
    blocks: "tuple[Block, ...]"


class Part(NamedTuple):
    """Blocks folded away on the page, and a file of their own beside a Markdown report; `name` is its path, as a figure's."""

    name: str
    summary: str
    blocks: "tuple[Block, ...]"


Block: TypeAlias = Heading | Text | Bullets | Code | Table | Figure | Strips | Details | Part


def walk(blocks: Iterable[Block]) -> Iterator[Block]:
    """Every block, with those folded away in others."""
    for block in blocks:
        yield block
        if isinstance(block, Details | Part):
            yield from walk(block.blocks)


def notes(section: str) -> tuple[Markup, ...]:
    """The paragraphs of one section of notes.md."""
    text = Path(__file__).with_name("notes.md").read_text(encoding="utf-8")
    paragraphs = text.partition(f"# {section}\n\n")[2].partition("\n\n# ")[0].split("\n\n")
    return tuple(Markup(" ".join(paragraph.split())) for paragraph in paragraphs)


def slug(text: str) -> str:
    """Text as an anchor, or as a file's name.

    Example:
        >>> slug("Losses, cell by cell")
        'losses-cell-by-cell'
    """
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")


def place(name: str) -> str:
    """The path of a picture or a part below its report, with each piece as `slug` has it, and short enough for a file.

    Example:
        >>> place("figures/My model-nfe")
        'figures/my-model-nfe'
    """
    return "/".join(cut(slug(piece)) or "_" for piece in name.split("/"))
