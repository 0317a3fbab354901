"""What judges found, as a table with notes and as JSON."""

from dataclasses import asdict
from typing import Any

from steindiff.io.files import manifest
from steindiff.metrics import TITLES
from steindiff.report.blocks import Block, Bullets, Table
from steindiff.report.numbers import show, tree
from steindiff.study.judging import Judgements

PUBLISHED = 50000


def blocks(found: Judgements) -> tuple[Block, ...]:
    """The table of all numbers, with columns for real images and a second set where there are such, and how to read it."""
    lines = [line for judgement in found.judgements for line in judgement.lines]
    floors, compared = any(line.real for line in lines), any(line.against for line in lines)
    columns = ["", found.sets["images"]["source"], "n", *(["real images, same n"] if floors else [])]
    columns += [found.sets["against"]["source"], "difference", ""] if compared else []
    rows = []
    for line in lines:
        row = [TITLES[line.name], show(line.value), f"{found.n:,}", *([show(line.real)] if floors else [])]
        row += [show(line.against), show(line.difference), line.verdict] if compared else []
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows)), Bullets(notes(found))


def notes(found: Judgements) -> tuple[str, ...]:
    """How to read the table."""
    lines = ["± is one standard error over samples, with the reference and the weights fixed; lower is better, except IS."]
    lines += [f"{TITLES[j.lines[0].name]}: {j.floor}." for j in found.judgements if j.lines]
    if found.n != PUBLISHED:
        lines.append(f"Published numbers are of n = {PUBLISHED:,}: these compare with others of n = {found.n:,} only.")
    if found.job.few:
        lines.append("--few: where images are no more than features, the distance is biased upwards very much.")
    if found.job.against:
        known = "The same seeds, as both run.json say" if found.paired else "Nothing says that the seeds are the same"
        lines.append(f"{known}; the difference is image by image in order, and noise below two standard errors.")
    return tuple(lines)


def as_json(found: Judgements) -> dict[str, Any]:
    """Everything, with versions and the command."""
    judgements = [
        {**tree(j), "lines": [{**tree(line), "verdict": line.verdict or None} for line in j.lines]} for j in found.judgements
    ]
    how = notes(found) if found.job.images else ()
    return manifest(job=asdict(found.job), sets=found.sets, paired=found.paired, notes=how, judgements=judgements)
