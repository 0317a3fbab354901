"""Rows of a table by closed-loop least squares, from the paper's γ to all that a run knows.

The paper's coefficient solves a normal equation with one direction, γ* = E⟨u, x − x*⟩/E‖u‖². Here the target is y(σ'), the
point to which the exact flow takes the same noise, and the directions are all that the run has: with r = σ'/σ,

    x' = r x + (1−r) D_0 + c_D (1−r) D_0 + c_x r (x − D_0) + Σ_j c_j (D_j − D_{j+1}),
    c = argmin Σ_laws weight E‖y(σ') − x'‖² + λ Σ_k G_kk c_k²,

G the Gram matrix of the directions. Steps are fitted in order, each on the states that the fitted steps before it reach
(closed loop), so that it repairs their errors. Gram matrices are in float64. The ridge λ is relative: directions are nearly
collinear.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from steindiff.calibration.teacher import Trajectories, check
from steindiff.errors import InputError, require
from steindiff.solvers import Row, Tabulated
from steindiff.solvers.multistep import weighted

RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Run:
    """A run of a table on one law: the state and the values so far, newest first, about the mean."""

    law: Trajectories
    x: Tensor
    values: tuple[Tensor, ...] = ()

    def evaluated(self, sigma: float) -> "Run":
        """The same with one more value, D(x, σ)."""
        return replace(self, values=(self.law.denoise(self.x, sigma), *self.values))

    def stepped(self, row: Row) -> "Run":
        """The same after a step."""
        return replace(self, x=weighted(row, self.x, self.values))


def fit(
    laws: Sequence[Trajectories],
    levels: Sequence[float],
    *,
    told: Sequence[float] | None = None,
    free: bool = True,
    history: int | None = None,
    ridge: float = RIDGE,
    moments: bool = False,
) -> Tabulated:
    """The rows for these levels that bring all laws nearest to their exact flows, step by step.

    Args:
        laws: trajectories of one or several laws over one range of levels; each has its weight.
        levels: σ_0 > … > σ_n, the first and the last those of the trajectories.
        told: q_i, one number a step: the network is told q_i σ_i; None is 1 everywhere.
        free: whether the first step evaluates nothing.
        history: the most values that a row uses; None is all.
        ridge: λ, relative to the squares of the directions.
        moments: whether each row is then scaled as `matched` says; the next row is fitted to what that leaves.

    Raises:
        InputError: no trajectories, levels that are not theirs or do not decrease, or normal equations that are not finite.
    """
    falling = len(levels) > 1 and all(s > t for s, t in pairwise(levels))
    require(falling, "need two or more levels that decrease", levels=tuple(levels))
    check(laws, levels)
    q = tuple(told or (1.0,) * (len(levels) - 1))
    require(0 < ridge < math.inf, "need a finite ridge above 0: the directions are nearly collinear", ridge=ridge)
    require(history is None or history >= 1, "need a history of at least one value, or None for all", history=history)
    fits = len(q) == len(levels) - 1 and all(0 < each < math.inf for each in q)
    require(fits, f"need {len(levels) - 1} finite told levels above 0, one a step", told=q)
    runs, rows = [Run(law, law.noise) for law in laws], list[Row]()
    for i, (sigma, target) in enumerate(pairwise(levels)):
        if free and i == 0:
            row = free_row(runs, target)
        else:
            runs = [run.evaluated(q[i] * sigma) for run in runs]
            runs = [replace(run, values=run.values[:history]) for run in runs]
            row = fitted_row(runs, target / sigma, target, ridge)
        rows.append(_matched(runs, row, target) if moments else row)
        runs = [run.stepped(rows[-1]) for run in runs]
    return Tabulated(tuple(levels), tuple(rows), q)


def matched(table: Tabulated, laws: Sequence[Trajectories]) -> Tabulated:
    """The table with each row scaled, in order, so that states have the second moment of the exact flow at their levels.

    Least squares shrinks what it cannot predict, so that states are a little too small. The moments are those of all laws
    together, about their means, each law with its weight.

    Raises:
        InputError: no trajectories, or levels that are not theirs.
    """
    check(laws, table.levels)
    runs, rows = [Run(law, law.noise) for law in laws], list[Row]()
    for i, (row, q) in enumerate(zip(table.rows, table.told, strict=True)):
        runs = [run.evaluated(q * table.levels[i]) for run in runs] if row.values else runs
        rows.append(_matched(runs, row, table.levels[i + 1]))
        runs = [run.stepped(rows[-1]) for run in runs]
    return replace(table, rows=tuple(rows))


def _matched(runs: Sequence[Run], row: Row, target: float) -> Row:
    """The row times √(Σ ‖y‖²/Σ ‖x'‖²); the same where there is no state to scale."""
    states = [(run.law, run.stepped(row).x) for run in runs]
    have = float(sum(law.product(x, x) for law, x in states))
    want = float(sum(law.product(law.at(target), law.at(target)) for law in (run.law for run in runs)))
    factor = math.sqrt(want / have) if have > 0 else 1.0
    return Row(factor * row.a, tuple(factor * w for w in row.values))


def free_row(runs: Sequence[Run], target: float) -> Row:
    """a = Σ ⟨x, y⟩/Σ ‖x‖²."""
    products = [(run.law.product(run.x, run.law.at(target)), run.law.product(run.x, run.x)) for run in runs]
    return Row(float(sum(p for p, _ in products) / sum(s for _, s in products)), ())


def fitted_row(runs: Sequence[Run], r: float, target: float, ridge: float) -> Row:
    """The row that the coefficients c make, for a step by the factor r to the level `target`."""
    gram, moment = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for run in runs:
        g, m = _normal(run, r, target)
        gram, moment = gram + g.cpu(), moment + m.cpu()
    if not bool(gram.isfinite().all() & moment.isfinite().all()):
        raise InputError(f"the normal equations of the step to sigma = {target:g} are not finite: a law or a network gives NaN")
    loaded = gram + ridge * gram.diag().diag() + torch.finfo(torch.float64).tiny * torch.eye(len(gram), dtype=torch.float64)
    solution, failed = torch.linalg.solve_ex(loaded, moment)
    if failed or not bool(solution.isfinite().all()):
        raise InputError(f"the normal equations of the step to sigma = {target:g} are singular: need a ridge above {ridge:g}")
    of_d, of_x, *of_change = solution.tolist()
    values = [0.0] * (len(of_change) + 1)
    values[0] = (1 - r) * (1 + of_d) - r * of_x
    for j, c in enumerate(of_change):
        values[j] += c
        values[j + 1] -= c
    return Row(r * (1 + of_x), tuple(values))


def _normal(run: Run, r: float, target: float) -> tuple[Tensor, Tensor]:
    """The Gram matrix of the directions and their products with what the first-order step misses, one law's share of each."""
    x, (d, *_) = run.x, run.values
    changes = [new - old for new, old in zip(run.values, run.values[1:], strict=False)]
    missed = run.law.at(target) - (r * x + (1 - r) * d)
    root = run.law.weight.sqrt()
    rows = torch.stack([(z.double() * root).flatten() for z in ((1 - r) * d, r * (x - d), *changes, missed)])
    products = rows @ rows.mT
    return products[:-1, :-1], products[:-1, -1]
