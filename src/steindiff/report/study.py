"""The report of a study: report.md with pictures beside it, and report.html, one page with everything in it.

Every sentence is made from the results, whatever they are; results that are not there yet are dashes, and counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from steindiff.io import processes
from steindiff.io.folders import Claim, begins
from steindiff.metrics import HIGHER, TITLES
from steindiff.report import write
from steindiff.report.blocks import Block, Bullets, Code, Details, Heading, Part, Table, Text, notes
from steindiff.report.contest import contest_blocks
from steindiff.report.paper import paper_blocks
from steindiff.report.published import published_blocks
from steindiff.report.study_figures import AXES, every_metric, image_strips, overview, quality, shown_solvers, spectra, traces
from steindiff.report.tables import best_table, cost_table, count_table, counts, gamma_table, losing_table, quality_table, short
from steindiff.study.compare import HEADLINE, Study, Verdict, against_best, equal_cost
from steindiff.study.grid import FLAGS, OWN, PRESETS, Cell, Config
from steindiff.study.store import ROOMS, BedSummary

_PLACES = ("report.md", "report.html", "figures/*", "metrics/*", "paper/*")
CLAIM = Claim("bench", _PLACES, ROOMS, begins("report.md", "# steindiff bench"))
_ORDER = "wins / losses / ties / diverged"
_KINDS = {
    "exact": "an exact law",
    "network": "a trained network",
    "guided": "an exact law under guidance",
    "guided network": "a trained network under guidance",
}


def write_report(folder: Path, study: Study, about: Mapping[str, Any] | None = None, paper_model: str = "") -> None:
    """Write report.md, figures/, metrics/, paper/ and report.html; cells without a result are shown as missing.

    Processes that have joined call this together: they share out the figures, and the first of them writes.
    `about` is a `files.manifest(…)`; its "rerun", where given, is the command that makes the study. `paper_model` is the model
    of the SteinDiff paper that the study is of (`paper.MODELS`), whose published numbers may then be subtracted. Raises as
    `report.write`.
    """
    figures = _figures(study)
    if processes.rank():
        return
    blocks = [*_facts(study), *contest_blocks(study), *_tables(study), *_best(study), *figures, *_losses(study)]
    blocks += paper_blocks(study, paper_model)
    blocks += [Heading("As published, not ours"), *published_blocks(), *_how(study, about or {}), *_appendix(study)]
    write(folder, "steindiff bench", blocks)


def command(config: Config, outdir: str = "outputs/bench", **lists: Sequence[str | int]) -> str:
    """The command that runs a study, or the part of it that has these entries, from the preset that needs fewest flags."""
    wanted = {name: tuple(lists[name]) if name in lists else getattr(config, name) for name in FLAGS}

    def flags(preset: Config) -> list[str]:
        return [f"{FLAGS[name]} {quote(_listed(v, ','))}" for name, v in wanted.items() if v != getattr(preset, name)]

    name = min(PRESETS, key=lambda p: len(flags(PRESETS[p])))
    return " ".join(["steindiff bench", f"--preset {name}", *flags(PRESETS[name]), f"--outdir {quote(outdir)}"])


def _listed(entry: object, comma: str = ", ") -> str:
    return comma.join(map(str, entry)) if isinstance(entry, list | tuple) else str(entry)


def _facts(study: Study) -> list[Block]:
    """What was found, counted."""
    have, cells = len(study.results), len(list(study.config.cells()))
    failed = sum(bool(r.failure) for r in study.results.values())
    text = f"{have} of {cells} cells have a result, {cells - have} are missing; {failed} of the results ended without numbers. "
    reading: list[Block] = [Heading("How to read the numbers", 3), Bullets(notes("bench"))]
    if not study.corrections:
        return [Heading("What was found"), Text(text.strip()), *reading]
    at_cost = {cell: equal_cost(study, cell) for cell in study.corrected}
    short_of = sum(c for _, c in at_cost.values())
    rules = "; ".join(f"{short(c)} {_counts(study, HEADLINE, c)}" for c in study.corrections)
    text += (
        f"By {TITLES[HEADLINE]}, every corrected run against the plain run of the same solver, grid, NFE and "
        f"seeds, {_ORDER}: {rules}; all together {_counts(study, HEADLINE)}. "
        "Against the plain run of the same solver that costs as many forward-equivalents, or the next fewer: "
        f"{counts(Counter(v for v, _ in at_cost.values()))}; in {short_of} of these every such plain run of the study "
        "costs at least two evaluations less."
    )
    counted = _counted(study, {cell: found for cell, (found, _) in at_cost.items()})
    blocks = [Heading("What was found"), Text(text), *counted, *map(Text, notes("bench gamma")), gamma_table(study)]
    return [*blocks, *reading]


def _counted(study: Study, at_cost: Mapping[Cell, Verdict]) -> list[Block]:
    """Wins and losses by testbed, solver, NFE and metric."""

    def at_nfe(cell: Cell) -> Verdict:
        return study.verdict(cell, HEADLINE)

    tables = {
        "NFE, by testbed": count_table(study, "bed", at_nfe),
        "forward-equivalents, by testbed": count_table(study, "bed", at_cost.__getitem__),
        "NFE, by solver": count_table(study, "solver", at_nfe),
        "NFE, by NFE": count_table(study, "nfe", at_nfe),
    }
    blocks: list[Block] = []
    for title, table in tables.items():
        blocks += [Text(f"{_title(HEADLINE)} at equal {title}, {_ORDER}:"), table]
    metrics = study.all_metrics
    rows = [(short(c) or "all", *(_counts(study, m, c) for m in metrics)) for c in [*study.corrections, ""]]
    by_metric = Table(("correction", *(TITLES.get(m, m) for m in metrics)), tuple(rows))
    return [*blocks, Text(f"By metric at equal NFE, all testbeds that have it, {_ORDER}:"), by_metric]


def _counts(study: Study, metric: str, correction: str = "") -> str:
    return counts(Counter(study.verdicts(metric, correction)))


def _tables(study: Study) -> list[Block]:
    """The headline metric, testbed by testbed."""
    text = "Value ± standard error; for a corrected run its change against the plain row above, and whether that is noise."
    blocks: list[Block] = [Heading(f"{_title(HEADLINE)} in the layout of the paper's Table 1"), Text(text)]
    for bed in study.config.beds:
        blocks += [Heading(short(bed), 3), Text(_described(study.bed(bed)))]
        for grid in study.config.used_grids:
            blocks += [*_one_table(study, bed, grid, HEADLINE), Code(command(study.config, beds=[bed], **_on(study, grid)))]
    return blocks


def _one_table(study: Study, bed: str, grid: str, metric: str) -> list[Block]:
    cells = [cell for cell in study.config.cells() if (cell.bed, cell.grid) == (bed, grid)]
    missing = sum(cell not in study.results for cell in cells)
    direction = "higher is better" if metric in HIGHER else "lower is better"
    title = f"{short(bed)}, grid {grid}: {TITLES.get(metric, metric)}, {direction}."
    note = f" {missing} of {len(cells)} runs are missing." if missing else ""
    return [Text(title + note), quality_table(study, bed, grid, metric)]


def _on(study: Study, grid: str) -> dict[str, Any]:
    """The entries of a study that leave this grid only."""
    return {"solvers": study.config.solvers_on(grid)} if grid == OWN else {"grids": [grid]}


def _title(metric: str) -> str:
    name = TITLES.get(metric, metric)
    return name[:1].upper() + name[1:]


def _described(bed: BedSummary | None) -> str:
    if bed is None:
        return "Not looked at yet."
    kind = _KINDS.get(bed.kind, bed.kind)
    shape = "×".join(map(str, bed.event_shape))
    target = f", {bed.n_target} samples in the target" if bed.n_target else ""
    return f"{short(bed.name)}: {kind}, shape {shape}{target}. Reference: {bed.reference}."


def _best(study: Study) -> list[Block]:
    """The fair question: does a correction beat the best that needs none?"""
    if not study.corrections:
        return []
    title = Heading("The best plain solver against the best corrected one")
    blocks: list[Block] = [title, *map(Text, notes("bench best"))]
    for bed, grid in study.places:
        blocks += [Text(f"{short(bed)}, grid {grid}:"), best_table(study, bed, grid)]
    against = Text(f"Every corrected run against the best plain run of any solver at its NFE, by testbed, {_ORDER}:")
    return [*blocks, against, count_table(study, "bed", lambda cell: against_best(study, cell))]


def _figures(study: Study) -> list[Block]:
    """All figures, testbed by testbed."""
    beds = [bed for bed in study.config.beds if any(cell.bed == bed for cell in study.results)]
    drawn = _drawn(study, beds)

    def those(draw: Callable[..., Block | None], *bed: str) -> tuple[Block, ...]:
        return tuple(block for (made_by, of), block in drawn.items() if made_by is draw and of[: len(bed)] == bed)

    blocks: list[Block] = [Heading("Figures"), *those(overview)]
    for bed in beds:
        blocks.append(Heading(f"{short(bed)}: figures", 3))
        blocks.append(Details(f"{short(bed)}: {TITLES[HEADLINE]}, solver by solver", those(quality, bed)))
        blocks.append(Details(f"{short(bed)}: every metric against NFE", those(every_metric, bed)))
        blocks += [*those(traces, bed), *those(spectra, bed)]
        images = those(image_strips, bed)
        blocks += images[:1]
        blocks += [Details(f"{short(bed)}: images of {len(images) - 1} more solvers", images[1:])] if images[1:] else []
    return blocks


def _drawn(study: Study, beds: Sequence[str]) -> dict[tuple[Callable[..., Block | None], tuple[str, ...]], Block]:
    """Every figure that there is, by what draws it and what it is of; processes that have joined draw some each."""
    solvers, grids = shown_solvers(study), study.config.used_grids
    asked: list[tuple[Callable[..., Block | None], tuple[str, ...]]] = [(overview, (axis,)) for axis in AXES]
    for bed in beds:
        asked += [(quality, (bed, grid, axis)) for grid in grids for axis in AXES]
        asked += [(draw, (bed, solver)) for draw in (every_metric, image_strips) for solver in solvers]
        asked += [(traces, (bed,)), (spectra, (bed,))]
    drawn = processes.dealt([partial(draw, study, *of) for draw, of in asked])
    return {key: block for key, block in zip(asked, drawn, strict=True) if block}


def _losses(study: Study) -> list[Block]:
    """Every cell where a correction hurts."""
    text = f"By {TITLES[HEADLINE]} at equal NFE: worse by more than two standard errors, or diverged."
    blocks: list[Block] = [Heading("Losses, cell by cell"), Text(text)] if study.corrections else []
    for rule in study.corrections:
        found = Counter(study.verdicts(HEADLINE, rule))
        title = f"{short(rule)}: {found['loss']} losses, {found['diverged']} diverged"
        table = losing_table(study, rule)
        blocks.append(Details(title, (table,)) if table.rows else Text(f"{title}."))
    reasons = Counter(r.failure for r in study.results.values() if r.failure)
    if reasons:
        lines = tuple(f"{n} × {reason}" for reason, n in reasons.most_common(20))
        blocks.append(Details(f"Why {sum(reasons.values())} runs ended without numbers", (Bullets(lines),)))
    return blocks


def _how(study: Study, about: Mapping[str, Any]) -> list[Block]:
    """All that is needed to do it again."""
    c = study.config
    row = command(c, beds=c.beds[:1], solvers=c.solvers[:1], grids=c.grids[:1], nfe=c.nfe[:1], corrections=c.corrections[-1:])
    entries = [(name.replace("_", " "), _listed(getattr(c, name))) for name in FLAGS if name != "n"]
    entries += [("images a cell", f"{c.n}, seeds {c.first_seed}–{c.seeds[-1]}, the same in every cell")]
    entries += [("objects", ", ".join(f"{label} = {thing}" for label, thing in c.objects.items()))] if c.objects else []
    entries += [("seconds of sampling", f"{sum(r.seconds for r in study.results.values()):.0f}")]
    made = {key: value for key, value in about.items() if key not in ("study", "rerun", "command")}
    return [
        Heading("How this was made"),
        Text("The whole study; stopped at any moment, the same command goes on:"),
        Code(str(about.get("rerun") or command(c))),
        Text("One row, and as an example one cell; lists take commas, and the plain runs are always made too:"),
        Code(
            "steindiff bench --preset NAME --beds BED --solvers SOLVER --grids GRID --nfe N --corrections CORRECTION "
            f"--outdir FOLDER\n{row}"
        ),
        Table(("entry", "value"), (*entries, *_flat(made))),
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _listed(value)


def _appendix(study: Study) -> list[Block]:
    """Every other metric in the same layout, and what each run cost."""
    blocks: list[Block] = [Heading("Other metrics and costs")]
    for metric in (m for m in study.all_metrics if m != HEADLINE):
        places = [(bed, grid) for bed, grid in study.places if metric in study.metrics[bed]]
        tables = tuple(block for bed, grid in places for block in _one_table(study, bed, grid, metric))
        blocks.append(Part(f"metrics/{metric}", _title(metric), tables))
    costs: list[Block] = []
    for bed, grid in study.places:
        costs += [Text(f"{short(bed)}, grid {grid}: forward-equivalents, mean over batches."), cost_table(study, bed, grid)]
    return [*blocks, Part("metrics/cost", "Forward-equivalents of every run", tuple(costs))]
