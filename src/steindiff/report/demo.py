"""The demo's report: tables, image grids, γ per step, and a plain account of what they show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from steindiff.metrics import Value
from steindiff.report import show, write
from steindiff.report.blocks import Block, Bullets, Figure, Heading, Markup, Strips, Table, Text
from steindiff.report.figures import Line, Panel, charts, strips
from steindiff.report.palette import COLOURS
from steindiff.study.compare import Study
from steindiff.study.demo import RUNS, verdict, worth
from steindiff.study.grid import PLAIN, TWICE, Cell
from steindiff.study.store import BedSummary, Result

_LABELS = {PLAIN: "plain", "literal": "Eq. 11 as printed", "clamped": "Eq. 11, γ ≤ 1", TWICE: "plain, twice the NFE"}
_COLUMNS = ("solver", "correction", "NFE", "fwd-eq.", "energy distance", "excess", "Fréchet", "endpoint RMSE", "verdict")
_READING = (
    Markup("*Energy distance* to independent samples of the model's law (2E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, unbiased); ± one "
           "standard error."),
    Markup("*Excess*: that distance less the reference flow's own, paired over seeds: what the few steps lose."),
    Markup("*Fréchet distance* on the 32 leading principal axes of the target, with a jackknife standard error; biased upwards "
           "at this n."),
    Markup("*Endpoint RMSE* per coordinate to where a fine solver takes the same noise."),
    Markup("*Floor*: what a perfect sampler would score at this sample size."),
    Markup("*Fwd-eq.*, forward-equivalents: network evaluations plus the derivative Eq. 11 needs, at the cost measured on this "
           "machine."),
    Markup("*Plain, twice the NFE* costs about what a corrected run does: the fair rival."),
    Markup("*Verdict*: energy distance against the plain solver, paired over seeds; \"within noise\" below two standard "
           "errors, \"diverged\" where the endpoint error is over ten times the plain solver's."),
)  # fmt: skip


def write_report(folder: Path, study: Study, console: Console) -> None:
    """Write report.md, report.html and the pictures; print the tables and what they show.

    Raises:
        InputError: the folder cannot be written to.
    """
    tables = [block for bed in study.beds.values() for block in _tables(study, bed)]
    findings: list[Block] = [Heading("What this shows"), Bullets(tuple(_findings(study)))]
    show(console, [*tables, *findings])
    title = f"steindiff demo: {study.config.nfe[0]} network evaluations, {study.config.n} images per run, same seeds"
    gammas = (Heading("γ per step"), _gammas(study))
    write(folder, title, [*tables, *gammas, *findings, Heading("How to read the numbers"), Bullets(_READING)])


def _tables(study: Study, bed: BedSummary) -> list[Block]:
    results = [study.results[cell] for cell in study.config.cells() if cell.bed == bed.name]
    rows = [_row(study, result) for result in results]
    perfect = (bed.perfect["energy"], "0", bed.perfect["frechet"], f"{bed.error:.1e} (est.)")
    rows.append(("reference flow", "", "", "", *map(str, perfect), "floor"))
    return [Heading(bed.name), Text(f"Reference: {bed.reference}."), _images(bed, results), Table(_COLUMNS, tuple(rows))]


def _row(study: Study, result: Result) -> tuple[str, ...]:
    cell, stats = result.cell, result.stats
    cost = (f"{stats['nfe']:g}", f"{stats['forward_equivalents']:.1f}") if stats else ("–", "–")
    excess = result.excess.get("energy", Value(math.inf, math.nan))
    numbers = (worth(result, "energy"), excess, worth(result, "frechet"), worth(result, "endpoint"))
    return cell.solver, _LABELS[cell.correction], *cost, *map(str, numbers), verdict(study, cell)


def _findings(study: Study) -> Iterator[str]:
    """Sentences made from the numbers, whatever they are."""
    words = {cell: verdict(study, cell) for cell in study.config.cells()}
    for cell, word in words.items():
        if word == "diverged":
            result, plain = study.results[cell], study.results[cell.plain]
            largest = max(_gammas_of(result), default=math.inf if result.failure else math.nan)
            yield Markup(
                f"{_LABELS[cell.correction]} **diverges** on {cell.bed} with {cell.solver}: endpoint error "
                f"{worth(result, 'endpoint').value:.3g} against {worth(plain, 'endpoint').value:.3g} plain; largest γ "
                f"{largest:.3g}."
            )
    for rule in (rule for rule in RUNS.values() if rule != PLAIN):
        found = [word for cell, word in words.items() if cell.correction == rule]
        counts = ", ".join(f"{found.count(v)} {v}" for v in ("better", "within noise", "worse", "diverged") if v in found)
        yield f"{_LABELS[rule]}, energy distance against the plain solver, {len(found)} cells: {counts}."


def _gammas_of(result: Result) -> list[float]:
    """γ of every step; JSON has None for what is infinite."""
    return [math.inf if record["gamma"] is None else float(record["gamma"]) for record in result.trace]


def _images(bed: BedSummary, results: list[Result]) -> Strips:
    """One row per run and the reference flow below, one column per seed."""
    rows = [(f"{r.cell.solver}, {_LABELS[r.cell.correction]}", [r.shown.numpy() if len(r.shown) else None]) for r in results]
    rows.append(("reference flow", [bed.shown.numpy()]))
    return strips(bed.name, f"samples of {bed.name}, one column per seed", ("",), rows)


def _gammas(study: Study) -> Figure:
    """γ per step, literal dashed and clamped solid, on a logarithmic axis."""
    corrected = [cell for cell in study.config.cells() if cell.correction not in (PLAIN, TWICE)]
    panels = [Panel(bed, [_line(study, cell) for cell in corrected if cell.bed == bed]) for bed in study.beds]
    return charts("gamma", "γ per step; 1 is the plain step", [panels], x="step", y=["γ (1: plain solver)"], width=5.0)


def _line(study: Study, cell: Cell) -> Line:
    dashes, marker = ("--", "o") if cell.correction == "literal" else ("-", "s")
    look = {"ls": dashes, "marker": marker, "ms": 4, "color": COLOURS[study.config.solvers.index(cell.solver)]}
    return Line(f"{cell.solver}, {_LABELS[cell.correction]}", look, _gammas_of(study.results[cell]))
