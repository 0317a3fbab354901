"""What a benchmark writes: report.md, report.html and its figures, and results.json with every number and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.pages import rewrite

from steindiff.io.files import atomic, manifest, write_json
from steindiff.report import write
from steindiff.report.blocks import Block, Figure, slug
from steindiff.report.markdown import markdown


def keep(outdir: Path, title: str, blocks: Sequence[Block], options: Any, found: Any) -> None:
    """Write the folder, and print the page without its figures.

    Where the options name a `page`, the blocks go there too, between the marks that the title names; figures go to the folder
    images beside it.
    """
    write(outdir, title, blocks)
    write_json(outdir / "results.json", manifest(settings=asdict(options), found=found))
    page = getattr(options, "page", None)
    if page is not None:
        rewrite(page, slug(title), markdown(blocks, "images/"))
        for figure in blocks:
            if isinstance(figure, Figure):
                with atomic(page.parent / "images" / f"{figure.name}.png") as temporary:
                    temporary.write_bytes(figure.png)
    print(markdown(blocks))
