"""The tables of a study: the layouts of the paper's Tables 1 and 2, the best runs at equal cost, losses, and what γ was."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from steindiff.metrics import HIGHER, TITLES, Value, weigh
from steindiff.report.blocks import Entry, Table
from steindiff.report.numbers import MARKS, NONE, SAME, compact, show
from steindiff.study.compare import HEADLINE, Study, Verdict, best, capped, change_of, cost, gammas, rival
from steindiff.study.grid import PLAIN, Cell
from steindiff.study.store import Result


def counts(found: Counter[Verdict]) -> str:
    """Wins / losses / ties / diverged, and how many have nothing to compare."""
    text = " / ".join(str(found[v]) for v in ("win", "loss", "noise", "diverged"))
    return f"{text} ({found['missing']} –)" if found["missing"] else text


def label(cell: Cell) -> str:
    """The solver, and what corrects it."""
    return cell.solver if cell.correction == PLAIN else f"{cell.solver} + {short(cell.correction)}"


def short(name: str) -> str:
    """A testbed or correction, with its files named without their folders.

    Example:
        >>> short("models/small.safetensors"), short("energy(bands=8,moment=fits/m.json)")
        ('small.safetensors', 'energy(bands=8,moment=m.json)')
    """
    return re.sub(r"[^(=,]*/", "", name)


def count_table(study: Study, entry: str, of: Callable[[Cell], Verdict]) -> Table:
    """Counts of verdicts: a row per correction, a column per testbed, solver, or whatever entry of a cell."""
    found: defaultdict[tuple[str, Any], Counter[Verdict]] = defaultdict(Counter)
    for cell in study.corrected:
        column, verdict = getattr(cell, entry), of(cell)
        for place in ((cell.correction, column), (cell.correction, ""), ("", column), ("", "")):
            found[place][verdict] += 1
    columns = [*dict.fromkeys(getattr(cell, entry) for cell in study.corrected), ""]
    rows = [(short(rule) or "all", *(counts(found[rule, column]) for column in columns)) for rule in [*study.corrections, ""]]
    return Table(("correction", *(short(str(column)) or "all" for column in columns)), tuple(rows))


def quality_table(study: Study, bed: str, grid: str, metric: str) -> Table:
    """The layout of the paper's Table 1, method × NFE: a solver, below it its corrections, NFE across; floors last."""
    table = _layout(study, bed, grid, lambda cell: _entry(study, cell, metric))
    summary = study.bed(bed)
    floors = []
    for title, values in (("independent samples", summary and summary.floors), ("reference flow", summary and summary.perfect)):
        value = (values or {}).get(metric)
        floors.append((f"floor: {title}", show(value), *[SAME if value else NONE] * (len(study.nfe) - 1)))
    return Table(table.columns, (*table.rows, *floors))


def improvement_table(study: Study, bed: str, rule: str, solvers: Sequence[str], metrics: Sequence[str]) -> Table:
    """The layout of the paper's Table 2, metric × schedule × steps: Base, Stein and Improvement of each solver.

    Base is the plain run and Stein the one that `rule` corrects. The paper's steps are (NFE + 1)/2: it counts those of Heun.
    """
    kinds = ("Base", "Stein", "Improvement")
    columns = ("metric", "schedule", "steps (NFE)", *(f"{solver}: {kind}" for solver in solvers for kind in kinds))
    rows: list[tuple[str | Entry, ...]] = []
    for metric, grid, nfe in product(metrics, study.config.grids, study.nfe):
        cells = [Cell(bed, solver, grid, nfe, rule) for solver in solvers]
        entries = [e for cell in cells for e in (_entry(study, cell.plain, metric), *_stein(study, cell, metric))]
        rows.append((TITLES.get(metric, metric), grid, f"{(nfe + 1) / 2:g} ({nfe})", *entries))
    return Table(columns, tuple(rows))


def improvement(study: Study, cell: Cell, metric: str) -> Value | None:
    """How much better a corrected run is than its plain one, in percent of the latter, with the paired standard error.

    None where either has no number, and where the plain run's is within two standard errors of 0: no part of it means anything.
    """
    result, plain = (study.results.get(c) for c in (cell, cell.plain))
    change, base = result.changes.get(metric) if result else None, plain.values.get(metric) if plain else None
    if change is None or base is None or study.verdict(cell, metric) == "diverged" or not base.value > 2 * base.se:
        return None
    percent = (100 if metric in HIGHER else -100) / base.value
    return Value(percent * change.value + 0.0, abs(percent) * change.se)  # no change is no −0


def _stein(study: Study, cell: Cell, metric: str) -> tuple[Entry, Entry]:
    """A corrected run's value, and its improvement; the change itself where no part of the plain value means anything."""
    whole, found, gain = _entry(study, cell, metric), study.verdict(cell, metric), improvement(study, cell, metric)
    improved = Entry(f"{show(gain, signed=True)} %", MARKS[found], found) if gain else Entry("", MARKS[found], found)
    if gain is None and whole.change and found != "missing":
        improved = Entry("", f"change {whole.change}", found)
    return Entry(whole.text, mark=whole.mark), improved


def cost_table(study: Study, bed: str, grid: str) -> Table:
    """Forward-equivalents, in the layout of `quality_table`."""

    def entry(cell: Cell) -> str:
        found = cost(study.results.get(cell))
        return f"{found:.1f}" if math.isfinite(found) else NONE

    return _layout(study, bed, grid, entry)


def best_table(study: Study, bed: str, grid: str) -> Table:
    """Per NFE the best plain and the best corrected run, and what the cost of the latter would have bought."""
    columns = (
        "NFE", "best plain", "best corrected", "change at equal NFE", "its forward-equivalents",
        "its solver, plain, at that cost", "change", "best plain at that cost", "change",
    )  # fmt: skip
    rows = []
    for nfe in study.nfe:
        plain, corrected = (best(study, bed, grid, nfe, rules) for rules in ([PLAIN], study.corrections))
        more: list[str | Entry] = [NONE] * (len(columns) - 3)
        if corrected is not None:
            more = [_difference(corrected, plain), f"{cost(corrected):.1f}"]
            for solvers in ([corrected.cell.solver], study.config.solvers_on(grid)):
                other = rival(study, corrected, solvers)
                dagger = " †" if other is not None and capped(study, corrected, solvers) else ""
                more += [f"{_named(other, nfe=True)}{dagger}", _difference(corrected, other)]
        rows.append((str(nfe), _named(plain), _named(corrected), *more))
    return Table(columns, tuple(rows))


def losing_table(study: Study, correction: str) -> Table:
    """Where a correction loses or diverges by the headline metric: one row per testbed, grid and solver."""
    rows = []
    for bed, grid in study.places:
        for solver in study.config.solvers_on(grid):
            found = {cell: study.verdict(cell, HEADLINE) for cell in study.row(bed, solver, grid, correction)}
            losses = {cell.nfe: study.results[cell].changes[HEADLINE] for cell, verdict in found.items() if verdict == "loss"}
            lost = "; ".join(f"{nfe}: {show(change, signed=True)}" for nfe, change in losses.items())
            diverged = ", ".join(str(cell.nfe) for cell, verdict in found.items() if verdict == "diverged")
            if lost or diverged:
                rows.append((short(bed), grid, solver, lost or NONE, diverged or NONE))
    return Table(("testbed", "grid", "solver", "worse at NFE: by", "diverged at NFE"), tuple(rows))


def gamma_table(study: Study) -> Table:
    """What the corrections did, over the steps of first batches: how often γ (η of each band) is 1, quantiles of the rest."""
    rows = []
    for bed in study.config.beds:
        for rule in study.corrections:
            found = gammas(study, bed, rule)
            if not found:
                continue
            others = [v for v in found if v != 1]
            levels = np.quantile(others, (0.05, 0.5, 0.95)) if others else ()
            quantiles = [compact(f"{q:.3g}") for q in levels] or [NONE] * 3
            rows.append((short(bed), short(rule), f"{len(found):,}", f"{1 - len(others) / len(found):.0%}", *quantiles))
    return Table(("testbed", "correction", "γ seen", "γ = 1", "5 % of the others below", "median", "5 % above"), tuple(rows))


def _layout(study: Study, bed: str, grid: str, entry: Callable[[Cell], str | Entry]) -> Table:
    """A row for each solver and correction, a column for each NFE."""
    rows: list[tuple[str | Entry, ...]] = []
    for solver in study.config.solvers_on(grid):
        for rule in study.rules:
            cells = study.row(bed, solver, grid, rule)
            rows.append((label(cells[0]), *map(entry, cells)))
    return Table(("solver", *(f"NFE {n}" for n in study.nfe)), tuple(rows))


def _entry(study: Study, cell: Cell, metric: str) -> Entry:
    """A value, and for a corrected run the change with its mark."""
    result = study.results.get(cell)
    value = result.values.get(metric) if result else None
    if result and (result.failure or (value and not math.isfinite(value.value))):
        return Entry(f"{MARKS['diverged']} diverged", mark="diverged")
    if not result or not value:
        return Entry(NONE, mark="missing")
    if cell.correction == PLAIN:
        return Entry(show(value))
    return Entry(show(value), *_marked(result.changes.get(metric), study.verdict(cell, metric)))


def _marked(change: Value | None, found: Verdict) -> tuple[str, str]:
    """A change with its sign, and the verdict."""
    text = f"{show(change, signed=True)} " if change is not None else ""
    return text + MARKS[found], found


def _named(result: Result | None, nfe: bool = False) -> str:
    if result is None:
        return NONE
    where = f" at NFE {result.cell.nfe}" if nfe else ""
    return f"{label(result.cell)}{where}: {show(result.values[HEADLINE])}"


def _difference(result: Result, other: Result | None) -> Entry:
    if other is None:
        return Entry(NONE, mark="missing")
    change = change_of(result, other, HEADLINE)
    return Entry("", *_marked(change, weigh(change, HEADLINE)))
