"""What a benchmark writes: report.md, report.html and its figures, and results.json with every number and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steindiff.io.files import manifest, write_json
from steindiff.report import write
from steindiff.report.blocks import Block
from steindiff.report.markdown import markdown


def keep(outdir: Path, title: str, blocks: Sequence[Block], options: Any, found: Any) -> None:
    """Write the folder, and print the page without its figures."""
    write(outdir, title, blocks)
    write_json(outdir / "results.json", manifest(settings=asdict(options), found=found))
    print(markdown(blocks))
