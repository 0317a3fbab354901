"""The demo's report: tables, image grids, γ per step, and a plain account of what they show."""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from steindiff.io.folders import Claim, begins
from steindiff.report import show, write
from steindiff.report.blocks import Block, Bullets, Figure, Heading, Markup, Strips, Table, Text, notes
from steindiff.report.figures import Line, Panel, charts, strips
from steindiff.report.palette import COLOURS
from steindiff.study.compare import Study
from steindiff.study.demo import CALIBRATED, LARGER, MODELS, UNIVERSAL, Demo, best_plain, excess, table_run, verdict, worth
from steindiff.study.grid import PLAIN, TWICE, Cell
from steindiff.study.store import ROOMS, BedSummary, Result

_PLACES = ("report.md", "report.html", "results.json", "run.json", "gamma.png", "correction-*.png")
CLAIM = Claim("demo", (*_PLACES, *(f"{m}.png" for m in MODELS + LARGER)), ROOMS, begins("report.md", "# steindiff demo"))
_LABELS = {PLAIN: "plain", "literal": "Eq. 11 as printed", "clamped": "Eq. 11, γ ≤ 1", TWICE: "plain, twice the NFE"}
_COLUMNS = ("solver", "correction", "NFE", "fwd-eq.", "energy distance", "excess", "Fréchet", "endpoint RMSE", "verdict")
_FEW = (
    "model", "NFE", "endpoint RMSE: best plain", "universal", "nearer by", "calibrated", "nearer by", "excess: best plain",
    "universal", "calibrated",
)  # fmt: skip
_ROWS = 5
"""The most rows of a picture, with the exact flow's."""


def write_report(folder: Path, demo: Demo, console: Console) -> None:
    """Write report.md, report.html and the pictures; print the tables and what they show. Raises as `report.write`."""
    study = demo.paper
    few: list[Block] = [Text(_taken(demo)), Text(_nearer(demo)), few_table(demo)]
    first = Heading("The universal solver at few evaluations")
    second = Heading(f"The paper's correction, {study.config.nfe[0]} evaluations")
    tables = [block for bed in study.beds.values() for block in _tables(study, bed)]
    findings: list[Block] = [Heading("What the corrections do"), Bullets(tuple(_findings(study)))]
    show(console, [first, *few, second, *tables, *findings])
    title = f"steindiff demo: {study.config.n} images per run, same seeds"
    pictures = [_picture(study, bed) for study in demo.few for bed in study.beds.values()]
    gammas = (Heading("γ per step"), _gammas(study))
    meaning = (Heading("How to read the numbers"), Bullets(notes("demo")))
    write(folder, title, [first, *few, *pictures, second, *tables, *gammas, *findings, *meaning])


def few_table(demo: Demo) -> Table:
    """Our tables against the best plain solver, which is another for each metric, a row for each model and NFE."""
    rows = list[tuple[str, ...]]()
    for study in demo.few:
        for bed, nfe in ((bed, nfe) for bed in study.beds for nfe in study.nfe):
            plain = best_plain(study, bed, nfe, "endpoint")
            ours = [table_run(study, bed, nfe, solver) for solver in (UNIVERSAL, CALIBRATED)]
            ends = [e for run in ours for e in (_shown(run, "endpoint"), _times(_factor(plain, run)))]
            distances = ["–", "–", "–"]
            if "energy" in study.config.metrics:
                nearest = best_plain(study, bed, nfe, "excess")
                distances = [
                    f"{excess(nearest)} ({_named(nearest)})",
                    *("–" if run is None else str(excess(run)) for run in ours),
                ]
            rows.append((bed, f"{nfe}", f"{worth(plain, 'endpoint')} ({_named(plain)})", *ends, *distances))
    return Table(_FEW, tuple(rows))


def _shown(run: Result | None, metric: str) -> str:
    return "–" if run is None else str(worth(run, metric))


def _times(factor: float) -> str:
    return f"{factor:.1f}×" if factor == factor else "–"


def _taken(demo: Demo) -> str:
    """What ran, in one line."""
    runs: defaultdict[str, list[str]] = defaultdict(list)
    for (model, _), name in demo.taken.items():
        runs[model].append(name)
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for model, names in runs.items():
        alike[", ".join(names)].append(model)
    taken = "; ".join(f"{names} ({', '.join(models)})" for names, models in alike.items())
    return f'steindiff.sample("auto", denoiser, noise, nfe=N) took: {taken}.'


def _nearer(demo: Demo) -> str:
    """What the table says, whatever it is."""
    said = []
    for solver, title in (
        (UNIVERSAL, "The universal table, which knows none of these models,"),
        (CALIBRATED, "The calibrated one"),
    ):
        every = [
            _factor(best_plain(study, bed, nfe, "endpoint"), table_run(study, bed, nfe, solver))
            for study in demo.few for bed in study.beds for nfe in study.nfe
        ]  # fmt: skip
        factors = [factor for factor in every if factor == factor]
        if factors:
            won = sum(factor > 1 for factor in factors)
            near = f"in {won} of {len(factors)} rows: {min(factors):.1f} to {max(factors):.1f} times as near"
            said.append(f"{title} ends nearer the exact flow than the best plain solver {near}.")
    return " ".join(said)


def _factor(plain: Result, run: Result | None) -> float:
    """The endpoint error of the best plain solver over that of a table; NaN where there is no table."""
    return math.nan if run is None else worth(plain, "endpoint").value / worth(run, "endpoint").value


def _named(result: Result) -> str:
    return f"{result.cell.solver}, {result.cell.grid}"


def _picture(study: Study, bed: BedSummary) -> Strips:
    """The same seeds by the best plain solver and by our tables, and where the exact flow takes them."""
    runs = list[tuple[str, Result]]()
    for nfe in study.nfe:
        plain = best_plain(study, bed.name, nfe, "endpoint")
        ours = {solver: table_run(study, bed.name, nfe, solver) for solver in (UNIVERSAL, CALIBRATED)}
        some = [(f"best plain solver, {plain.cell.solver}", plain), *((f"{s} table", run) for s, run in ours.items() if run)]
        if len(runs) + len(some) < _ROWS:
            runs += [(f"{label}\n{nfe} evaluations", run) for label, run in some]
    images = [(label, [result.shown.numpy() if len(result.shown) else None]) for label, result in runs]
    caption = f"{bed.name}: the best plain solver, our tables, and the exact flow; one column per seed"
    return strips(bed.name, caption, ("",), [*images, ("exact flow", [bed.shown.numpy()])])


def _tables(study: Study, bed: BedSummary) -> list[Block]:
    """One row per run and the reference flow below; in the picture one column per seed."""
    results = [study.results[cell] for cell in study.config.cells() if cell.bed == bed.name]
    images = [(f"{r.cell.solver}, {_LABELS[r.cell.correction]}", [r.shown.numpy() if len(r.shown) else None]) for r in results]
    images.append(("reference flow", [bed.shown.numpy()]))
    picture = strips(f"correction-{bed.name}", f"samples of {bed.name}, one column per seed", ("",), images)
    perfect = (bed.perfect["energy"], "0", bed.perfect["frechet"], f"{bed.error:.1e} (est.)")
    rows = [*(_row(study, result) for result in results), ("reference flow", "", "", "", *map(str, perfect), "floor")]
    return [Heading(bed.name, 3), Text(f"Reference: {bed.reference}."), picture, Table(_COLUMNS, tuple(rows))]


def _row(study: Study, result: Result) -> tuple[str, ...]:
    cell, stats = result.cell, result.stats
    cost = (f"{stats['nfe']:g}", f"{stats['forward_equivalents']:.1f}") if stats else ("–", "–")
    numbers = (worth(result, "energy"), excess(result), worth(result, "frechet"), worth(result, "endpoint"))
    return cell.solver, _LABELS[cell.correction], *cost, *map(str, numbers), verdict(study, cell)


def _findings(study: Study) -> Iterator[str]:
    """Sentences made from the numbers, whatever they are."""
    words = {cell: verdict(study, cell) for cell in study.config.cells()}
    for cell in (cell for cell, word in words.items() if word == "diverged"):
        result, plain = study.results[cell], study.results[cell.plain]
        largest = max(_gammas_of(result), default=math.inf if result.failure else math.nan)
        yield Markup(
            f"{_LABELS[cell.correction]} **diverges** on {cell.bed} with {cell.solver}: endpoint error "
            f"{worth(result, 'endpoint').value:.3g} against {worth(plain, 'endpoint').value:.3g} plain; largest γ "
            f"{largest:.3g}."
        )
    for rule in study.corrections:
        found = [word for cell, word in words.items() if cell.correction == rule]
        counts = ", ".join(f"{found.count(v)} {v}" for v in ("better", "within noise", "worse", "diverged") if v in found)
        yield f"{_LABELS[rule]}, energy distance against the plain solver, {len(found)} cells: {counts}."


def _gammas_of(result: Result) -> list[float]:
    """γ of every step; JSON has None for what is infinite."""
    return [math.inf if record["gamma"] is None else float(record["gamma"]) for record in result.trace]


def _gammas(study: Study) -> Figure:
    """γ per step, literal dashed and clamped solid, on a logarithmic axis."""

    def line(cell: Cell) -> Line:
        dashes, marker = ("--", "o") if cell.correction == "literal" else ("-", "s")
        look = {"ls": dashes, "marker": marker, "ms": 4, "color": COLOURS[study.config.solvers.index(cell.solver)]}
        return Line(f"{cell.solver}, {_LABELS[cell.correction]}", look, _gammas_of(study.results[cell]))

    corrected = [cell for cell in study.corrected if cell.correction != TWICE]
    panels = [Panel(bed, [line(cell) for cell in corrected if cell.bed == bed]) for bed in study.beds]
    return charts("gamma", "γ per step; 1 is the plain step", [panels], x="step", y=["γ (1: plain solver)"], width=5.0)
