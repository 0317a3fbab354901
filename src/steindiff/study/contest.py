"""A solver with a grid of its own against the best of the others, testbed by testbed, NFE by NFE and metric by metric.

The others are the published methods: on every grid of the study, and on the contender's own levels (`free(…)`). The best of
them is chosen on the seeds that it is measured with, and for each metric anew, which favours them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steindiff.metrics import HIGHER, Value, weigh
from steindiff.solvers.free import Free
from steindiff.study.compare import Study, Verdict
from steindiff.study.grid import OWN, PLAIN, Cell
from steindiff.study.store import Result

DOUBLED = "best on a grid with twice the evaluations"
"""What the strongest rivals are called."""


@dataclass(frozen=True, eq=False)
class Duel:
    """A contender's plain run, and the best of others by one metric; None where there is none.

    Attributes:
        change: the contender less the other, paired over seeds.
        verdict: by the change; "diverged" where the contender ended without numbers.
    """

    cell: Cell
    metric: str
    own: Result | None
    other: Result | None
    change: Value | None
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """The other's value over the contender's: above 1 the contender is nearer, for a metric of which less is better."""
        if self.change is None or self.own is None or self.other is None:
            return math.nan
        own, other = (run.values[self.metric].value for run in (self.own, self.other))
        return other / own if own > 0 else math.nan


def contenders(study: Study) -> list[str]:
    """The solvers with grids of their own, but for published methods on the levels of a table."""
    return [label for label in study.config.solvers_on(OWN) if not _free(study, label)]


def on_grids(study: Study) -> list[str]:
    """The published methods on the study's grids."""
    return [label for label in study.config.solvers if OWN not in study.config.grids_of(label)]


def on_levels(study: Study) -> list[str]:
    """The published methods on the levels of a table, after its free step."""
    return [label for label in study.config.solvers_on(OWN) if _free(study, label)]


@dataclass(frozen=True)
class Rivals:
    """Others that a contender meets.

    Attributes:
        title: what a report calls the best of them.
        solvers: their labels.
        times: how many times the contender's evaluations they may spend.
    """

    title: str
    solvers: Sequence[str]
    times: int = 1


def rivals_of(study: Study, contender: str) -> list[Rivals]:
    """The kinds of others that a contender meets, as far as there are any.

    A contender also meets those that the study names before it; and published methods on a grid with twice its evaluations,
    where the study has such runs.
    """
    before = contenders(study)[: contenders(study).index(contender)]
    found = [Rivals("best on a grid", on_grids(study)), Rivals("best after a free step", on_levels(study))]
    found += [Rivals(label, [label]) for label in before]
    if any(2 * nfe in study.nfe for nfe in study.nfe):
        found.append(Rivals(DOUBLED, on_grids(study), 2))
    return [kind for kind in found if kind.solvers]


def duels(study: Study, bed: str, contender: str, metric: str, rivals: Rivals) -> list[Duel]:
    """One for each NFE that the contender has run at: the testbed's network and guidance decide whether it has a table."""
    cells = (Cell(bed, contender, OWN, nfe, PLAIN) for nfe in study.nfe)
    return [duel(study, cell, metric, rivals) for cell in cells if cell in study.results]


def duel(study: Study, cell: Cell, metric: str, rivals: Rivals) -> Duel:
    """A contender's cell against the best of the rivals by this metric."""
    own, other = study.results.get(cell), best_of(study, cell.bed, rivals.times * cell.nfe, metric, rivals.solvers)
    if own is None or other is None:
        return Duel(cell, metric, own, other, None, "missing")
    if own.failure or not math.isfinite(own.values[metric].value):
        return Duel(cell, metric, own, other, None, "diverged")
    change = own.minus(other, metric)
    return Duel(cell, metric, own, other, change, weigh(change, metric))


def best_of(study: Study, bed: str, nfe: int, metric: str, solvers: Sequence[str]) -> Result | None:
    """The best plain run of these solvers on any grid by this metric; None where none has numbers."""
    cells = [Cell(bed, solver, grid, nfe, PLAIN) for solver in solvers for grid in study.config.grids_of(solver)]
    runs = [run for run in study.found(cells) if metric in run.values and math.isfinite(run.values[metric].value)]
    sign = -1 if metric in HIGHER else 1
    return min(runs, key=lambda run: sign * run.values[metric].value, default=None)


def _free(study: Study, label: str) -> bool:
    return isinstance(study.config.solver(label), Free)
