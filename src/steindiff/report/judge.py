"""The numbers of a score, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from steindiff.io.files import manifest
from steindiff.metrics import TITLES, Value, weigh
from steindiff.study.score_job import Job

__all__ = ["Judgement", "Line", "Report"]

_WORDS = {"win": "better", "loss": "worse", "noise": "within noise"}
PUBLISHED = 50000


@dataclass(frozen=True)
class Line:
    """One number.

    Attributes:
        name: "fid", …
        value: of the images.
        real: of as many real images; None where there were not enough.
        against: of the second set.
        difference: value less against, paired.
    """

    name: str
    value: Value
    real: Value | None = None
    against: Value | None = None
    difference: Value | None = None

    @property
    def verdict(self) -> str:
        """By two standard errors of the difference: better, worse or within noise; empty where there is none."""
        if self.difference is None:
            return ""
        return _WORDS[weigh(self.difference, self.name)]

    def as_json(self) -> dict[str, Any]:
        """Values as {"value": …, "se": …}."""
        values = {name: getattr(self, name) for name in ("value", "real", "against", "difference")}
        found = {name: None if value is None else value._asdict() for name, value in values.items()}
        return {"name": self.name, **found, "verdict": self.verdict or None}


@dataclass(frozen=True)
class Judgement:
    """What one extractor says.

    Attributes:
        extractor: name, path, SHA-256, resizing.
        reference: where from, SHA-256 of the file, number of images.
        digest: of all that determines the numbers of given images.
        lines: none where only a reference was made.
        floor: what the numbers of real images are, or why there are none.
    """

    extractor: dict[str, Any]
    reference: dict[str, Any]
    digest: str
    lines: tuple[Line, ...]
    floor: str


@dataclass(frozen=True)
class Report:
    """Everything a score found out.

    Attributes:
        sets: about each set of images.
        paired: whether the two sets are known to be from the same seeds; None where nothing says.
    """

    job: Job
    sets: dict[str, Any]
    paired: bool | None
    judgements: tuple[Judgement, ...]

    @property
    def n(self) -> int:
        """Images scored."""
        return int(self.sets["images"]["n"])

    def as_json(self) -> dict[str, Any]:
        """With versions and the command."""
        found = [{**asdict(j), "lines": [line.as_json() for line in j.lines]} for j in self.judgements]
        return manifest(job=asdict(self.job), sets=self.sets, paired=self.paired, notes=self.notes(), judgements=found)

    def table(self) -> Table:
        """Of all numbers; columns for real images and for a second set where there are such."""
        lines = [line for judgement in self.judgements for line in judgement.lines]
        floors, compared = any(line.real for line in lines), any(line.against for line in lines)
        table = Table()
        table.add_column("")
        heads = [self.sets["images"]["source"], "n", *(["real images, same n"] if floors else [])]
        heads += [self.sets["against"]["source"], "difference", ""] if compared else []
        for head in heads:
            table.add_column(escape(head), justify="right", overflow="fold")
        for line in lines:
            cells = [str(line.value), f"{self.n:,}", *([_cell(line.real)] if floors else [])]
            cells += [_cell(line.against), _cell(line.difference), line.verdict] if compared else []
            table.add_row(TITLES[line.name], *cells)
        return table

    def notes(self) -> list[str]:
        """How to read the table."""
        found = ["± is one standard error over samples, with the reference and the weights fixed; lower is better, except IS."]
        found += [f"{TITLES[j.lines[0].name]}: {j.floor}." for j in self.judgements if j.lines]
        if self.n != PUBLISHED:
            found.append(f"Published numbers are of n = {PUBLISHED:,}: these compare with others of n = {self.n:,} only.")
        if self.job.few:
            found.append("--few: where images are no more than features, the distance is biased upwards very much.")
        if self.job.against:
            known = "The same seeds, as both run.json say" if self.paired else "Nothing says that the seeds are the same"
            found.append(f"{known}; the difference is image by image in order, and noise below two standard errors.")
        return found


def _cell(value: Value | None) -> str:
    return "–" if value is None else str(value)
