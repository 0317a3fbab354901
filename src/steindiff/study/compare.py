"""What a study's results say: a verdict per cell, and comparisons at equal evaluations and at equal cost.

A corrected run is compared with the plain run of the same solver, grid and NFE from the same seeds; the change is paired, and

    win, loss      a change beyond two standard errors, by the metric's direction (`metrics.weigh`)
    noise          any other
    diverged       no numbers, or an endpoint error over ten times the plain run's
    missing        nothing to compare: no result yet, no plain run, or a metric that this testbed does not have

Runs of different cost have no pairs. Their difference gets √(se² + se'²), which is as a rule too wide, for they share the
target and the noise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from steindiff.metrics import TITLES, Value, weigh
from steindiff.study.grid import PLAIN, Cell, Config
from steindiff.study.store import BedSummary, Result

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
    def of(cls, config: Config, results: Iterable[Result], beds: Iterable[BedSummary]) -> "Study":
        """Results of cells that the study does not ask for are left out."""
        wanted = set(config.cells())
        return cls(config, {r.cell: r for r in results if r.cell in wanted}, {b.name: b for b in beds})

    def bed(self, name: str) -> BedSummary | None:
        """A testbed's summary, by its name in the study or that of its file; None where it was not looked at yet."""
        return self.beds.get(name) or self.beds.get(Path(name).stem)

    @property
    def nfe(self) -> list[int]:
        """Evaluations in ascending order."""
        return sorted(self.config.nfe)

    @property
    def corrections(self) -> list[str]:
        """Every correction, without the plain run."""
        return [c for c in self.config.corrections if c != PLAIN]

    @property
    def rules(self) -> list[str]:
        """The plain run and every correction."""
        return [PLAIN, *self.corrections]

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every testbed with every grid that a solver has runs on."""
        return [(bed, grid) for bed in self.config.beds for grid in self.config.used_grids]

    def row(self, bed: str, solver: str, grid: str, rule: str) -> list[Cell]:
        """One cell for each NFE."""
        return [Cell(bed, solver, grid, nfe, rule) for nfe in self.nfe]

    def found(self, cells: Iterable[Cell]) -> list[Result]:
        """The results that there are of these cells."""
        return [self.results[cell] for cell in cells if cell in self.results]

    @cached_property
    def corrected(self) -> list[Cell]:
        """Every cell of a correction."""
        return [cell for cell in self.config.cells() if cell.correction != PLAIN]

    @cached_property
    def metrics(self) -> dict[str, list[str]]:
        """By testbed, the metrics that any of its runs has, in the order of TITLES, others last."""
        runs = self.results.items()
        return {bed: _ordered({m for cell, run in runs if cell.bed == bed for m in run.values}) for bed in self.config.beds}

    @property
    def all_metrics(self) -> list[str]:
        """The metrics of any testbed; the headline always."""
        return _ordered({HEADLINE}.union(*self.metrics.values()))

    def verdict(self, cell: Cell, metric: str) -> Verdict:
        """A corrected cell against its plain one."""
        return verdict(self.results.get(cell), self.results.get(cell.plain), metric)

    def verdicts(self, metric: str, correction: str = "") -> list[Verdict]:
        """Those of all corrected cells, or of one correction's, on the testbeds that have the metric."""
        cells = (c for c in self.corrected if metric == HEADLINE or metric in self.metrics[c.bed])
        return [self.verdict(c, metric) for c in cells if correction in ("", c.correction)]


def verdict(result: Result | None, plain: Result | None, metric: str) -> Verdict:
    """A corrected run against the plain one; see the module's text."""
    if result is None:
        return "missing"
    if result.failure or not math.isfinite(result.values.get(metric, Value(0.0, 0.0)).value):
        return "diverged"
    end, start = (r.values.get("endpoint") if r else None for r in (result, plain))
    if end is not None and start is not None and not end.value <= _DIVERGED * start.value:
        return "diverged"
    change = result.changes.get(metric)
    return "missing" if change is None or not math.isfinite(change.value) else weigh(change, metric)


def cost(result: Result | None) -> float:
    """Forward-equivalents; NaN where there are none."""
    return result.stats.get("forward_equivalents", math.nan) if result else math.nan


def rival(study: Study, result: Result, solvers: Sequence[str]) -> Result | None:
    """A plain run that costs no more than a result: of one solver the dearest, of several the best by the headline metric."""
    within = [r for r in _plain_runs(study, result, solvers) if cost(r) <= cost(result) + 1e-9]
    return max(within, key=cost, default=None) if len(solvers) == 1 else min(within, key=_headline, default=None)


def capped(study: Study, result: Result, solvers: Sequence[str]) -> bool:
    """Whether every plain run of these solvers costs at least two evaluations less: a dearer rival was never run."""
    return all(cost(run) <= cost(result) - 2 for run in _plain_runs(study, result, solvers))


def change_of(result: Result, other: Result, metric: str) -> Value:
    """A result less another: paired where the study holds the pair, else as if independent."""
    if other.cell == result.cell.plain and metric in result.changes:
        return result.changes[metric]
    a, b = result.values[metric], other.values[metric]
    return Value(a.value - b.value, math.hypot(a.se, b.se))


def equal_cost(study: Study, cell: Cell) -> tuple[Verdict, bool]:
    """A corrected cell against the plain run of its solver that its cost would have paid for; and whether that was `capped`."""
    result, found = study.results.get(cell), study.verdict(cell, HEADLINE)
    if result is None or found == "diverged" or HEADLINE not in result.values:
        return found, False
    other = rival(study, result, [cell.solver])
    if other is None:
        return "missing", False
    return weigh(change_of(result, other, HEADLINE), HEADLINE), capped(study, result, [cell.solver])


def against_best(study: Study, cell: Cell) -> Verdict:
    """A corrected cell against the best plain run of any solver on its testbed and grid at its NFE, by the headline metric."""
    found, other = study.verdict(cell, HEADLINE), best(study, cell.bed, cell.grid, cell.nfe, [PLAIN])
    if other is None:
        return "missing"
    return found if found in ("diverged", "missing") else weigh(change_of(study.results[cell], other, HEADLINE), HEADLINE)


def best(study: Study, bed: str, grid: str, nfe: int, rules: Sequence[str]) -> Result | None:
    """The lowest headline metric of all solvers, among the runs that did not diverge."""
    cells = (Cell(bed, solver, grid, nfe, rule) for solver in study.config.solvers_on(grid) for rule in rules)
    return min(_sound(study, cells), key=_headline, default=None)


def front(study: Study, bed: str, grid: str, rule: str, by_cost: bool) -> list[Result]:
    """The best of all solvers: at each NFE, or in order of cost those that are better than all cheaper ones."""
    if not by_cost:
        runs = (best(study, bed, grid, nfe, [rule]) for nfe in study.nfe)
        return [run for run in runs if run is not None]
    cells = (cell for solver in study.config.solvers_on(grid) for cell in study.row(bed, solver, grid, rule))
    found: list[Result] = []
    for run in sorted(_sound(study, cells), key=lambda r: (cost(r), _headline(r))):
        if not found or _headline(run) < _headline(found[-1]):
            found.append(run)
    return found


def gammas(study: Study, bed: str, rule: str) -> list[float]:
    """What a correction did over the steps of all first batches: η of each band where there are bands, else γ."""
    results = [r for cell, r in study.results.items() if (cell.bed, cell.correction) == (bed, rule)]
    steps = (record.get("eta") or [record.get("gamma")] for result in results for record in result.trace)
    return [float(v) for values in steps for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _plain_runs(study: Study, result: Result, solvers: Sequence[str]) -> list[Result]:
    """Those on a result's testbed and grid that have a headline metric."""
    cells = [cell for solver in solvers for cell in study.row(result.cell.bed, solver, result.cell.grid, PLAIN)]
    return [run for run in study.found(cells) if HEADLINE in run.values]


def _sound(study: Study, cells: Iterable[Cell]) -> list[Result]:
    """Those that have a headline metric and did not diverge."""
    return [r for r in study.found(cells) if HEADLINE in r.values and study.verdict(r.cell, HEADLINE) != "diverged"]


def _headline(result: Result) -> float:
    return result.values[HEADLINE].value


def _ordered(metrics: Iterable[str]) -> list[str]:
    order = list(TITLES)
    return sorted(metrics, key=lambda m: (order.index(m) if m in order else len(order), m))
