"""What a study's results say: a verdict per cell, the layout of the paper's Table 2, and comparisons at equal cost.

A corrected run is compared with the plain run of the same solver, grid and NFE from the same seeds; the change is paired, and

    win, loss      a change beyond two standard errors, by the metric's direction (`metrics.weigh`)
    noise          any other
    diverged       no numbers, or an endpoint error over ten times the plain run's
    missing        nothing to compare: no result yet, no plain run, or a metric that this testbed does not have

Runs of different cost have no pairs, and their difference gets √(se² + se'²), as a rule too wide, for they share the target
and the noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from steindiff.metrics import TITLES, Value, weigh
from steindiff.report.blocks import Entry, Table
from steindiff.report.numbers import MARKS, NONE, SAME, compact, show
from steindiff.study.grid import PLAIN, Cell, Config
from steindiff.study.store import BedSummary, Result

__all__ = [
    "HEADLINE", "BedSummary", "Study", "Verdict", "against_best", "best_table", "change_of", "cost",
    "cost_table", "counts", "equal_cost", "gamma_table", "label", "losing_table", "quality_table", "rival", "short",
    "tally", "verdict",
]  # fmt: skip

Verdict = Literal["win", "loss", "noise", "diverged", "missing"]

HEADLINE = "energy"
_DIVERGED = 10.0


@dataclass(frozen=True, eq=False)
class Study:
    """Results by cell, as far as there are any, with what the study asks for."""

    config: Config
    results: Mapping[Cell, Result]
    beds: Mapping[str, BedSummary]

    @classmethod
    def of(cls, config: Config, results: Iterable[Result], beds: Iterable[BedSummary]) -> Study:
        """Results of cells that the study does not ask for are left out."""
        wanted = set(config.cells())
        return cls(config, {r.cell: r for r in results if r.cell in wanted}, {b.name: b for b in beds})

    def bed(self, name: str) -> BedSummary | None:
        """A testbed's summary; a model file's is under the model's name."""
        return self.beds.get(name) or self.beds.get(Path(name).stem)

    @property
    def nfe(self) -> list[int]:
        """In ascending order."""
        return sorted(self.config.nfe)

    @property
    def corrections(self) -> list[str]:
        """Without the plain run."""
        return [c for c in self.config.corrections if c != PLAIN]

    @cached_property
    def corrected(self) -> list[Cell]:
        """Every cell of a correction."""
        return [cell for cell in self.config.cells() if cell.correction != PLAIN]

    @cached_property
    def metrics(self) -> dict[str, list[str]]:
        """By testbed, those that any of its runs has, in the order of TITLES, others last."""
        found: dict[str, set[str]] = {bed: set() for bed in self.config.beds}
        for cell, result in self.results.items():
            found[cell.bed] |= result.values.keys()
        return {bed: sorted(names, key=lambda m: (_rank(m), m)) for bed, names in found.items()}

    @property
    def all_metrics(self) -> list[str]:
        """Those of any testbed; the headline always."""
        return sorted({HEADLINE}.union(*self.metrics.values()), key=lambda m: (_rank(m), m))

    def verdict(self, cell: Cell, metric: str) -> Verdict:
        """Of a corrected cell against its plain one."""
        return verdict(self.results.get(cell), self.results.get(cell.plain), metric)


def verdict(result: Result | None, plain: Result | None, metric: str) -> Verdict:
    """Of a corrected run against the plain one; see the module's text."""
    if result is None:
        return "missing"
    if result.failure or not math.isfinite(result.values.get(metric, Value(0.0, 0.0)).value):
        return "diverged"
    end, start = (r.values.get("endpoint") if r else None for r in (result, plain))
    if end is not None and start is not None and not end.value <= _DIVERGED * start.value:
        return "diverged"
    change = result.changes.get(metric)
    return "missing" if change is None or not math.isfinite(change.value) else weigh(change, metric)


def tally(verdicts: Iterable[Verdict]) -> Counter[Verdict]:
    """How many of each."""
    return Counter(verdicts)


def counts(found: Counter[Verdict]) -> str:
    """Wins / losses / ties / diverged, and how many have nothing to compare."""
    text = " / ".join(str(found[v]) for v in ("win", "loss", "noise", "diverged"))
    return f"{text} ({found['missing']} –)" if found["missing"] else text


def label(cell: Cell) -> str:
    """The solver, and what corrects it."""
    return cell.solver if cell.correction == PLAIN else f"{cell.solver} + {short(cell.correction)}"


def short(name: str) -> str:
    """A testbed or correction without its folder."""
    return Path(name).name


def quality_table(study: Study, bed: str, grid: str, metric: str) -> Table:
    """The paper's Table 2: a solver, below it its corrections, NFE across; floors last."""
    rows: list[tuple[str | Entry, ...]] = []
    for solver in study.config.solvers:
        for rule in (PLAIN, *study.corrections):
            cells = [Cell(bed, solver, grid, nfe, rule) for nfe in study.nfe]
            rows.append((label(cells[0]), *(_entry(study, cell, metric) for cell in cells)))
    summary = study.bed(bed)
    for title, values in (("independent samples", "floors"), ("reference flow", "perfect")):
        value = getattr(summary, values).get(metric) if summary else None
        first, rest = (NONE, NONE) if value is None else (show(value), SAME)
        rows.append((f"floor: {title}", first, *[rest] * (len(study.nfe) - 1)))
    return Table(("solver", *(f"NFE {n}" for n in study.nfe)), tuple(rows))


def _entry(study: Study, cell: Cell, metric: str) -> Entry:
    """A value, and for a corrected run the change with its mark."""
    result = study.results.get(cell)
    value = result.values.get(metric) if result else None
    if result is not None and (result.failure or (value and not math.isfinite(value.value))):
        return Entry(f"{MARKS['diverged']} diverged", mark="diverged")
    if result is None or value is None:
        return Entry(NONE, mark="missing")
    if cell.correction == PLAIN:
        return Entry(show(value))
    return Entry(show(value), *_marked(result.changes.get(metric), study.verdict(cell, metric)))


def _marked(change: Value | None, found: Verdict) -> tuple[str, str]:
    """A change with its sign, and the verdict."""
    text = f"{show(change, signed=True)} " if change is not None else ""
    return text + MARKS[found], found


def cost(result: Result | None) -> float:
    """Forward-equivalents; NaN where there are none."""
    return result.stats.get("forward_equivalents", math.nan) if result else math.nan


def cost_table(study: Study, bed: str, grid: str) -> Table:
    """Forward-equivalents, in the layout of `quality_table`."""
    rows: list[tuple[str | Entry, ...]] = []
    for solver in study.config.solvers:
        for rule in (PLAIN, *study.corrections):
            cells = [Cell(bed, solver, grid, nfe, rule) for nfe in study.nfe]
            found = [cost(study.results.get(cell)) for cell in cells]
            rows.append((label(cells[0]), *(f"{c:.1f}" if math.isfinite(c) else NONE for c in found)))
    return Table(("solver", *(f"NFE {n}" for n in study.nfe)), tuple(rows))


def rival(study: Study, result: Result, solvers: Sequence[str]) -> Result | None:
    """A plain run that costs no more than a result: of one solver the dearest, of several the best by the headline metric."""
    within = [r for r in _plain_runs(study, result, solvers) if cost(r) <= cost(result) + 1e-9]
    if len(solvers) == 1:
        return max(within, key=cost, default=None)
    return min(within, key=lambda r: r.values[HEADLINE].value, default=None)


def capped(study: Study, result: Result, solvers: Sequence[str]) -> bool:
    """Whether every plain run of these solvers costs at least two evaluations less: a dearer rival was never run."""
    return all(cost(run) <= cost(result) - 2 for run in _plain_runs(study, result, solvers))


def _plain_runs(study: Study, result: Result, solvers: Sequence[str]) -> list[Result]:
    """On a result's testbed and grid, with a headline metric."""
    cells = (Cell(result.cell.bed, s, result.cell.grid, nfe, PLAIN) for s in solvers for nfe in study.nfe)
    return [study.results[c] for c in cells if c in study.results and HEADLINE in study.results[c].values]


def change_of(result: Result, other: Result, metric: str) -> Value:
    """A result less another: paired where the study holds the pair, else as if independent."""
    if other.cell == result.cell.plain and metric in result.changes:
        return result.changes[metric]
    a, b = result.values[metric], other.values[metric]
    return Value(a.value - b.value, math.hypot(a.se, b.se))


def equal_cost(study: Study, cell: Cell, metric: str = HEADLINE) -> tuple[Verdict, bool]:
    """A corrected cell against the plain run of its solver that its cost would have paid for; and whether that was `capped`."""
    result, found = study.results.get(cell), study.verdict(cell, metric)
    if result is None or found == "diverged" or metric not in result.values:
        return found, False
    other = rival(study, result, [cell.solver])
    if other is None or metric not in other.values:
        return "missing", False
    return weigh(change_of(result, other, metric), metric), capped(study, result, [cell.solver])


def best_table(study: Study, bed: str, grid: str) -> Table:
    """Per NFE the best plain and the best corrected run, and what the cost of the latter would have bought."""
    columns = (
        "NFE", "best plain", "best corrected", "change at equal NFE", "its forward-equivalents",
        "its solver, plain, at that cost", "change", "best plain at that cost", "change",
    )  # fmt: skip
    rows = []
    for nfe in study.nfe:
        plain, corrected = (_best(study, bed, grid, nfe, rules) for rules in ([PLAIN], study.corrections))
        row: list[str | Entry] = [str(nfe), _named(plain), _named(corrected)]
        if corrected is None:
            rows.append((*row, *[NONE] * (len(columns) - 3)))
            continue
        row += [_difference(corrected, plain), f"{cost(corrected):.1f}"]
        for solvers in ([corrected.cell.solver], list(study.config.solvers)):
            other = rival(study, corrected, solvers)
            dagger = " †" if other is not None and capped(study, corrected, solvers) else ""
            row += [f"{_named(other, nfe=True)}{dagger}", _difference(corrected, other)]
        rows.append(tuple(row))
    return Table(columns, tuple(rows))


def against_best(study: Study, cell: Cell) -> Verdict:
    """A corrected cell against the best plain run of any solver on its testbed and grid at its NFE, by the headline metric."""
    found, best = study.verdict(cell, HEADLINE), _best(study, cell.bed, cell.grid, cell.nfe, [PLAIN])
    if best is None:
        return "missing"
    return found if found in ("diverged", "missing") else weigh(change_of(study.results[cell], best, HEADLINE), HEADLINE)


def _best(study: Study, bed: str, grid: str, nfe: int, rules: Sequence[str]) -> Result | None:
    """Of all solvers, the lowest headline metric among runs that did not diverge."""
    cells = [Cell(bed, solver, grid, nfe, rule) for solver in study.config.solvers for rule in rules]
    runs = [study.results[c] for c in cells if c in study.results and HEADLINE in study.results[c].values]
    kept = [r for r in runs if study.verdict(r.cell, HEADLINE) != "diverged"]
    return min(kept, key=lambda r: r.values[HEADLINE].value, default=None)


def _named(result: Result | None, nfe: bool = False) -> str:
    if result is None:
        return NONE
    where = f" at NFE {result.cell.nfe}" if nfe else ""
    return f"{label(result.cell)}{where}: {show(result.values[HEADLINE])}"


def _difference(result: Result, other: Result | None) -> Entry:
    if other is None:
        return Entry(NONE, mark="missing")
    change = change_of(result, other, HEADLINE)
    text, found = _marked(change, weigh(change, HEADLINE))
    return Entry("", text, found)


def losing_table(study: Study, correction: str) -> Table:
    """Where a correction loses or diverges by the headline metric: one row per testbed, grid and solver."""
    rows = []
    for bed in study.config.beds:
        for grid in study.config.grids:
            for solver in study.config.solvers:
                cells = [Cell(bed, solver, grid, nfe, correction) for nfe in study.nfe]
                lost = "; ".join(_losses(study, cells))
                diverged = ", ".join(str(c.nfe) for c in cells if study.verdict(c, HEADLINE) == "diverged")
                if lost or diverged:
                    rows.append((short(bed), grid, solver, lost or NONE, diverged or NONE))
    return Table(("testbed", "grid", "solver", "worse at NFE: by", "diverged at NFE"), tuple(rows))


def gamma_table(study: Study) -> Table:
    """What the corrections did, over the steps of first batches: how often γ (η of each band) is 1, quantiles of the rest."""
    rows = []
    for bed in study.config.beds:
        for rule in study.corrections:
            results = [r for cell, r in study.results.items() if (cell.bed, cell.correction) == (bed, rule)]
            found = [v for r in results for record in r.trace for v in _gammas(record)]
            if not found:
                continue
            others = [v for v in found if v != 1]
            levels = np.quantile(others, (0.05, 0.5, 0.95)) if others else ()
            quantiles = [compact(f"{q:.3g}") for q in levels] or [NONE] * 3
            rows.append((short(bed), short(rule), f"{len(found):,}", f"{1 - len(others) / len(found):.0%}", *quantiles))
    return Table(("testbed", "correction", "γ seen", "γ = 1", "5 % of the others below", "median", "5 % above"), tuple(rows))


def _gammas(record: Mapping[str, Any]) -> list[float]:
    """Of one step: η per band where there are bands, else γ; those that are numbers."""
    values = record.get("eta") or [record.get("gamma")]
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _losses(study: Study, cells: Iterable[Cell]) -> Iterator[str]:
    for cell in cells:
        if study.verdict(cell, HEADLINE) == "loss":
            yield f"{cell.nfe}: {show(study.results[cell].changes[HEADLINE], signed=True)}"


def _rank(metric: str) -> int:
    return list(TITLES).index(metric) if metric in TITLES else len(TITLES)
