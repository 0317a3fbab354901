"""Blocks as Markdown; pictures and parts are links to files."""

import html
import re
from collections.abc import Iterable

from steindiff.report.blocks import Block, Bullets, Code, Details, Figure, Heading, Markup, Part, Strips, Table, Text, place


def markdown(blocks: Iterable[Block], root: str = "") -> str:
    """The text of a Markdown file; `root` leads from the file's folder to the report's."""
    return "\n\n".join(_block(block, root) for block in blocks) + "\n"


def escape(text: object) -> str:
    r"""Text that Markdown shows as it is; an underscore inside a word needs no escape, and a `Markup` stays.

    Example:
        >>> escape("a*b < c_d")
        'a\\*b &lt; c_d'
    """
    if isinstance(text, Markup):
        return text
    single = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]|$~])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found.group(), single)


def _block(block: Block, root: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {escape(text)}"
        case Text(text):
            return escape(text)
        case Bullets(items):
            return "\n".join(f"- {escape(item)}" for item in items)
        case Code(text):
            return f"```\n{text}\n```"
        case Table(columns, rows):
            lines = [columns, ["---"] * len(columns), *rows]
            return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)
        case Figure(name, caption) | Strips(name, caption):
            return f"![{escape(name.rpartition('/')[2])}]({root}{place(name)}.png)\n\n{escape(caption)}"
        case Details(summary, inner):
            return f"<details><summary>{html.escape(summary, quote=False)}</summary>\n\n{markdown(inner, root)}\n</details>"
        case Part(name, summary, _):
            return f"- [{escape(summary)}]({root}{place(name)}.md)"
