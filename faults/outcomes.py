"""Attempts by kind and outcome: which outcomes are as promised, and the table of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results import keep

from steindiff.errors import InputError
from steindiff.report.blocks import Block, Bullets, Table, Text


@dataclass
class Outcomes:
    """What attempts on one kind came to.

    Attributes:
        counts: attempts by outcome.
        against: how many came to an outcome that is not promised.
        broken: the first attempts that came to an outcome that is not promised, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    against: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, outcome: str, attempt: str, promised: Iterable[str]) -> None:
        """Write down an attempt."""
        self.counts[outcome] += 1
        if outcome not in promised:
            self.against += 1
            self.broken = [*self.broken, f"{outcome}: {attempt}"][:5]


def page(found: Mapping[str, Outcomes], outcomes: Sequence[str], what: str) -> list[Block]:
    """The table of all kinds, and whatever broke a promise."""
    rows = [(name, *(str(own.counts[outcome]) for outcome in outcomes)) for name, own in found.items()]
    total = Counter[str]()
    for own in found.values():
        total.update(own.counts)
    rows.append(("all", *(str(total[outcome]) for outcome in outcomes)))
    broken = [f"{name}: {said}" for name, own in found.items() for said in own.broken]
    against = sum(own.against for own in found.values())
    said = f"{total.total()} attempts, of which {against} came to something else than is promised."
    return [Text(said), Table((what, *outcomes), tuple(rows)), *([Bullets(tuple(broken))] if broken else [])]


def told(outdir: Path, title: str, blocks: Sequence[Block], options: Any, found: Mapping[str, Outcomes]) -> None:
    """Write the folder and print the page. Raises InputError where a promise was broken."""
    kept = {name: {**vars(own), "counts": dict(own.counts)} for name, own in found.items()}
    keep(outdir, title, blocks, options, kept)
    if any(own.broken for own in found.values()):
        raise InputError("a promise was broken: see the table")
