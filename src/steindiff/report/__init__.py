"""Reports: blocks, and what renders them as Markdown, as an HTML page and on the terminal.

blocks = [Heading("What was found"), Text("…"), Table(columns, rows), drawing]
write(folder, "steindiff demo", blocks)      # report.md, report.html, and the pictures
show(console(), blocks)
"""

from collections.abc import Sequence
from pathlib import Path

from steindiff.errors import needs
from steindiff.io.files import atomic, write_text
from steindiff.report import markdown
from steindiff.report.blocks import Block, Figure, Heading, Part, Strips, place, walk

with needs("cli", "a report"):
    from steindiff.report import page
    from steindiff.report.terminal import console, show

__all__ = ["console", "show", "write"]


def write(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write report.md, report.html, and each picture and part to the path that its name says.

    Raises:
        InputError: the folder cannot be written to.
    """
    for block in walk(blocks):
        match block:
            case Figure(name, _, png) | Strips(name, _, png):
                with atomic(folder / f"{place(name)}.png") as temporary:
                    temporary.write_bytes(png)
            case Part(name, summary, inner):
                text = markdown.markdown([Heading(summary, 1), *inner], root="../" * name.count("/"))
                write_text(folder / f"{place(name)}.md", text)
    write_text(folder / "report.md", markdown.markdown([Heading(title, 1), *blocks]))
    write_text(folder / "report.html", page.page(title, blocks))
