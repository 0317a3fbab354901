"""Published FIDs, to be read beside a study and never to be compared with it: other models, other features, 50,000 samples.

published.json holds them. Each number was copied from the source named beside it, none was measured here. A method that is
calibrated, trained or distilled for its number of evaluations says so: it does not compete with what needs nothing.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from steindiff.report.blocks import Block, Details, Table, Text, notes
from steindiff.report.numbers import NONE


class Published(NamedTuple):
    """One method in one setting; `fid` by network evaluations, with the digits of the source, a key (or two) of SOURCES."""

    method: str
    needs: str
    source: str
    fid: dict[int, str]


class Setting(NamedTuple):
    """Data and model: the numbers of these rows may be compared with one another."""

    name: str
    note: str
    rows: tuple[Published, ...]

    @property
    def table(self) -> Table:
        """Rows of methods, columns of network evaluations; “–” where the source has no number."""
        nfe = sorted({n for row in self.rows for n in row.fid})
        columns = ("method, as published, not ours", "needs", "source", *(f"NFE {n}" for n in nfe))
        return Table(columns, tuple((*row[:3], *(row.fid.get(n, NONE) for n in nfe)) for row in self.rows))


def published_blocks() -> tuple[Block, ...]:
    """The section of a report."""
    settings = (
        Details(f"{s.name}: {len(s.rows)} methods, as published, not ours", (s.table, *(Text(t) for t in [s.note] if t)))
        for s in PUBLISHED
    )
    sources = "; ".join(f"{key}: {text}" for key, text in SOURCES.items())
    return *map(Text, notes("published")), *settings, Text(f"Sources: {sources}.")


def _row(row: dict[str, Any]) -> Published:
    return Published(**{**row, "fid": {int(nfe): fid for nfe, fid in row["fid"].items()}})


_FILE: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SOURCES: dict[str, str] = _FILE["sources"]
PUBLISHED = tuple(Setting(s["name"], s["note"], tuple(map(_row, s["rows"]))) for s in _FILE["settings"])
