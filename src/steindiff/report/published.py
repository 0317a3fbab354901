"""Published FIDs, to be read beside a study and never to be compared with it: other models, other features, 50,000 samples.

published.json holds them. Each number was copied from the source named beside it, none was measured here. A method that is
calibrated, trained or distilled for its number of evaluations says so: it does not compete with what needs nothing. Rows of
the SteinDiff paper say where they stand in its tables; `report.paper` sets them beside a study's own numbers.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from steindiff.report.blocks import Block, Details, Table, Text, notes
from steindiff.report.numbers import NONE


class Place(NamedTuple):
    """Where a row stands in the SteinDiff paper's table."""

    solver: str
    """A solver's name, or what the names of its family begin with; empty where the paper names none."""
    grid: str
    """Our name of the schedule; empty in a table without schedules."""
    stein: bool
    """Whether the row is corrected."""


class Published(NamedTuple):
    """One method in one setting; `fid` by network evaluations, with the digits of the source, a key (or two) of SOURCES."""

    method: str
    needs: str
    source: str
    fid: dict[int, str]
    place: Place | None = None


class Improvement(NamedTuple):
    """An improvement that the SteinDiff paper states in a cell whose Base and Stein we do not know."""

    solver: str
    grid: str
    nfe: int
    percent: str
    source: str


class Setting(NamedTuple):
    """Data and model: the numbers of these rows may be compared with one another."""

    name: str
    note: str
    rows: tuple[Published, ...]
    improvements: tuple[Improvement, ...] = ()
    paper_table: int = 0
    """The number of the SteinDiff paper's table on this setting; 0 for none."""

    @property
    def of_paper(self) -> tuple[Published, ...]:
        """The rows of the SteinDiff paper's table."""
        return tuple(row for row in self.rows if row.place)

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
    place = Place(*row["place"]) if "place" in row else None
    return Published(**{**row, "fid": {int(nfe): fid for nfe, fid in row["fid"].items()}, "place": place})


def _setting(about: dict[str, Any]) -> Setting:
    improvements = tuple(Improvement(**one) for one in about.get("improvements", ()))
    rows = tuple(map(_row, about["rows"]))
    return Setting(about["name"], about["note"], rows, improvements, about.get("paper_table", 0))


_FILE: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SOURCES: dict[str, str] = _FILE["sources"]
PUBLISHED = tuple(map(_setting, _FILE["settings"]))
