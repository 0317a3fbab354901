"""Blocks on the terminal; pictures are left out."""

from collections.abc import Iterable

from markdown_it import MarkdownIt
from rich import markdown as rich_markdown
from rich import table as rich_table
from rich.console import Console
from rich.text import Text as RichText

from steindiff.report.blocks import Block, Bullets, Code, Details, Entry, Figure, Heading, Markup, Part, Strips, Table, Text
from steindiff.report.markdown import markdown

_STYLES = {"win": "blue", "loss": "red", "diverged": "red"}


def console(width: int = 150) -> Console:
    """The terminal, or room for wide tables where there is none."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=width)


def show(console: Console, blocks: Iterable[Block]) -> None:
    """Print blocks, with what is folded away elsewhere."""
    for block in blocks:
        match block:
            case Heading(text, _):
                console.print(RichText(_words(text), "bold"))
            case Code(text):
                console.print(RichText(text), soft_wrap=True)
            case Text() | Bullets():
                console.print(rich_markdown.Markdown(markdown([block])))
            case Table(columns, rows):
                table = rich_table.Table()
                for name in columns:
                    table.add_column(RichText(_words(name)), overflow="fold")
                for row in rows:
                    table.add_row(*map(_cell, row))
                console.print(table)
            case Details(summary, inner) | Part(_, summary, inner):
                show(console, [Heading(summary), *inner])
            case Figure() | Strips():
                pass


def _cell(entry: str | Entry) -> RichText:
    if isinstance(entry, str):
        return RichText(_words(entry))
    return RichText("\n".join(part for part in (entry.text, entry.change) if part), _STYLES.get(entry.mark, ""))


def _words(text: str) -> str:
    """A text without its Markdown."""
    if not isinstance(text, Markup):
        return text
    return "".join(token.content for token in MarkdownIt("commonmark").parseInline(text)[0].children or [])
