"""Published FIDs, to be read beside a study and never to be compared with it: other models, other features, 50,000 samples.

published.json holds them. Each number was copied from the source named beside it, none was measured here. A method that is
calibrated, trained or distilled for its number of evaluations says so: it does not compete with what needs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from steindiff.report.blocks import Block, Details, Table, Text
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
        rows = [(r.method, r.needs, r.source, *(r.fid.get(n, NONE) for n in nfe)) for r in self.rows]
        return Table(columns, tuple(rows))


def published_blocks() -> tuple[Block, ...]:
    """The section of a report."""
    blocks: list[Block] = [
        Text(
            "As published, not ours: FID (lower is better) of 50,000 samples of large trained networks, copied from the "
            "sources below. Nothing in this report can be compared with them, for the models, the features and the numbers "
            "of samples are others. They say which solvers are strong, and what needs calibration. “–”: the source has no "
            "number."
        )
    ]
    for setting in PUBLISHED:
        inner: tuple[Block, ...] = (setting.table, *((Text(setting.note),) if setting.note else ()))
        blocks.append(Details(f"{setting.name}: {len(setting.rows)} methods, as published, not ours", inner))
    return (*blocks, Text("Sources: " + "; ".join(f"{key}: {text}" for key, text in SOURCES.items()) + "."))


def _row(row: dict[str, Any]) -> Published:
    return Published(**{**row, "fid": {int(nfe): fid for nfe, fid in row["fid"].items()}})


_FILE: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SOURCES: dict[str, str] = _FILE["sources"]
PUBLISHED = tuple(Setting(s["name"], s["note"], tuple(map(_row, s["rows"]))) for s in _FILE["settings"])
