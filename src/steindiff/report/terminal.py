"""Blocks on the terminal; pictures are left out."""

from __future__ import annotations

from collections.abc import Iterable

from markdown_it import MarkdownIt
from rich import table as rich_table
from rich.console import Console
from rich.text import Text as RichText

from steindiff.report.blocks import Block, Bullets, Code, Details, Entry, Figure, Heading, Markup, Part, Strips, Table, Text

__all__ = ["console", "show"]

_STYLES = {"win": "blue", "loss": "red", "diverged": "red"}
_OPENED = {"strong_open": "bold", "em_open": "italic"}


def console() -> Console:
    """The terminal, or room for wide tables where there is none."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=150)


def show(console: Console, blocks: Iterable[Block]) -> None:
    """Print blocks, with what is folded away elsewhere."""
    for block in blocks:
        match block:
            case Heading(text, _):
                console.print(_inline(text, "bold"))
            case Text(text):
                console.print(_inline(text))
            case Bullets(items):
                for item in items:
                    console.print(RichText("- ").append(_inline(item)))
            case Code(text):
                console.print(RichText(text), soft_wrap=True)
            case Table():
                console.print(_table(block))
            case Details(summary, inner) | Part(_, summary, inner):
                console.print(_inline(summary, "bold"))
                show(console, inner)
            case Figure() | Strips():
                pass


def _table(block: Table) -> rich_table.Table:
    table = rich_table.Table()
    for name in block.columns:
        table.add_column(_inline(name), overflow="fold")
    for row in block.rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(entry: str | Entry) -> RichText:
    if isinstance(entry, str):
        return _inline(entry)
    return RichText("\n".join(part for part in (entry.text, entry.change) if part), _STYLES.get(entry.mark, ""))


def _inline(text: str, style: str = "") -> RichText:
    """A text, or Markdown with its emphasis and code."""
    if not isinstance(text, Markup):
        return RichText(text, style)
    result, styles = RichText(style=style), [""]
    for token in MarkdownIt("commonmark").parseInline(text)[0].children or []:
        if token.nesting > 0:
            styles.append(_OPENED.get(token.type, ""))
        elif token.nesting < 0:
            styles.pop()
        else:
            result.append(
                " " if token.type == "softbreak" else token.content, "cyan" if token.type == "code_inline" else styles[-1]
            )
    return result
