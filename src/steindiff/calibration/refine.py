"""Gauss–Newton on the end-point error, over all numbers of a table at once.

    minimise over θ    F(θ) = ½ Σ_laws log E‖x_n(θ) − y(σ_n)‖²,      θ = all a_i and w_ij, and the logarithms of told levels

A law counts by the logarithm of its error, so that easy and hard laws count alike. The nominal levels σ_i are no parameters: a
run depends on them through the told levels only. The steps are those of Levenberg and Marquardt, (JᵀJ + μ diag JᵀJ) δ = −Jᵀr.
J is taken by forward differences, without derivatives of the network: a number of step i changes nothing before that step, so
its run branches off there. Of all tables on the way, the one with the lowest F on held-out laws or noises is kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from steindiff.calibration.fit import Run, weighted
from steindiff.calibration.teacher import Trajectories, check
from steindiff.errors import InputError
from steindiff.solvers import Row, Tabulated

DIFFERENCE = 1e-4
"""The relative step of a forward difference: of states in float32, the rounding is still a thousand times smaller."""


@dataclass(frozen=True)
class Settings:
    """How long a refinement goes on, and how boldly.

    Args:
        iterations: the most Gauss–Newton steps.
        patience: stop after so many steps in a row that do not lower F on the held-out laws.
        gain: stop where a step lowers F on the fitted laws by less.
        damping: the first μ.
        floor: errors below this fraction of a law's spread (RMS) are all as good as none.
        difference: the step of a forward difference.
    """

    iterations: int = 20
    patience: int = 4
    gain: float = 2e-4
    damping: float = 1e-3
    floor: float = 3e-4
    difference: float = DIFFERENCE


@dataclass(frozen=True)
class Progress:
    """F of the fitted and of the held-out laws after an accepted step."""

    iteration: int
    fitted: float
    held: float


def run(table: Tabulated, law: Trajectories) -> Tensor:
    """The end states of a run from the law's noise, about the mean, (B, *event)."""
    state = Run(law, law.noise)
    for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
        state = (state.evaluated(q * sigma) if row.values else state).stepped(row)
    return state.x


def errors(table: Tabulated, laws: Sequence[Trajectories]) -> Tensor:
    """The squared error of each law, as a fraction of its spread, float64."""
    gaps = ((law, run(table, law) - law.ends) for law in laws)
    return torch.stack([law.product(gap, gap).cpu() for law, gap in gaps])


def refine(
    table: Tabulated,
    laws: Sequence[Trajectories],
    held: Sequence[Trajectories],
    settings: Settings = Settings(),
    tell: Callable[[Progress], object] = lambda progress: None,
) -> Tabulated:
    """Of the tables that Gauss–Newton steps on `laws` reach, the best one on `held` laws or noises, which it never fits.

    Raises:
        InputError: no trajectories, levels that are not the table's, or end states of the table that are not finite.
    """
    check(laws, table.levels)
    check(held, table.levels)
    floor, mu, stale = settings.floor**2, settings.damping, 0
    kept, fitted, best = table, errors(table, laws), _mean_log(errors(table, held), floor)
    if not math.isfinite(best + _mean_log(fitted, floor)):
        raise InputError(
            "the table's end states are not finite on a law: fit it, or give it other levels, before it is refined"
        )
    for iteration in range(settings.iterations):
        equations = _normal_equations(table, laws, fitted + floor, settings.difference)
        before = _mean_log(fitted, floor)
        table, fitted, mu = _descended(table, laws, equations, fitted, mu, floor)
        here = _mean_log(errors(table, held), floor)
        kept, best, stale = (table, here, 0) if here < best else (kept, best, stale + 1)
        tell(Progress(iteration, _mean_log(fitted, floor), here))
        if stale >= settings.patience or before - _mean_log(fitted, floor) < settings.gain:
            break
    return kept


def _descended(
    table: Tabulated, laws: Sequence[Trajectories], equations: tuple[Tensor, Tensor], fitted: Tensor, mu: float, floor: float
) -> tuple[Tabulated, Tensor, float]:
    """The table after a step that lowers F, its errors, and μ; the same table where eight dampings find none."""
    jtj, jtr = equations
    if not bool(jtj.isfinite().all() & jtr.isfinite().all()):
        raise InputError("the derivatives of the table's end states are not finite: a law or a network gives NaN near its runs")
    idle = torch.finfo(torch.float64).tiny * torch.eye(len(jtj), dtype=torch.float64)  # a number that changes nothing stays
    for _ in range(8):
        delta = torch.linalg.solve(jtj + mu * jtj.diag().diag() + idle, -jtr)
        if bool(delta.isfinite().all()):
            candidate = _moved(table, delta)
            tried = errors(candidate, laws)
            if _mean_log(tried, floor) < _mean_log(fitted, floor):
                return candidate, tried, max(mu / 5, 1e-9)
        mu *= 5
    return table, fitted, mu


def _mean_log(squares: Tensor, floor: float) -> float:
    """F; infinite where an error is not finite."""
    value = float((squares + floor).log().mean()) / 2
    return value if math.isfinite(value) else math.inf


def _normal_equations(table: Tabulated, laws: Sequence[Trajectories], scale: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """JᵀJ and Jᵀr, each law divided by its squared error."""
    jtj, jtr = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for law, square in zip(laws, scale.tolist(), strict=True):
        root = (law.weight / square).sqrt()
        end, tangents = jacobian(table, law, h)
        gap = ((end - law.ends).double() * root).flatten()
        slopes = (tangents.double() * root).flatten(1)
        jtj, jtr = jtj + (slopes @ slopes.mT).cpu(), jtr + (slopes @ gap).cpu()
    return jtj, jtr


def jacobian(table: Tabulated, law: Trajectories, h: float = DIFFERENCE) -> tuple[Tensor, Tensor]:
    """The end states (B, *event), and their derivatives by every parameter, (P, B, *event), in the order of `parameters`."""
    x, values = law.noise[None], tuple[Tensor, ...]()  # the run itself, and a branch for each parameter so far
    for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
        here, told = x[:1], list[Tensor]()
        if row.values:
            shifted = law.denoise(here, q * sigma * math.exp(h))
            values = (law.denoise(x, q * sigma), *values)
            told = [row.values[0] * (shifted - values[0][:1])]
        after = weighted(row, x, values)
        used = [v[:1] for v in values[: len(row.values)]]
        branches = torch.cat([after[:1] + change for change in (*told, h * here, *(h * v for v in used))])
        values = tuple(torch.cat([v, v[:1].expand(len(branches), *v.shape[1:])]) for v in values)
        if row.values:
            values[0][len(x)] = shifted[0]
        x = torch.cat([after, branches])
    return x[0], (x[1:] - x[0]) / h


def parameters(table: Tabulated) -> list[float]:
    """θ: step by step the logarithm of the told level (where the step evaluates), a, and the weights."""
    theta = list[float]()
    for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
        theta += [*([math.log(q * sigma)] if row.values else []), row.a, *row.values]
    return theta


def _moved(table: Tabulated, delta: Tensor) -> Tabulated:
    """The table at θ + δ; a told level changes by a factor of two at most."""
    steps, rows, told = iter(delta.tolist()), list[Row](), list[float]()
    for q, row in zip(table.told, table.rows, strict=True):
        told.append(q * math.exp(max(-0.7, min(0.7, next(steps)))) if row.values else q)
        a = row.a + next(steps)
        rows.append(Row(a, tuple(w + next(steps) for w in row.values)))
    return replace(table, rows=tuple(rows), told=tuple(told))


def renamed(table: Tabulated, laws: Sequence[Trajectories], points: int = 400) -> Tabulated:
    """The same method with each nominal level where the run's state lies nearest the exact flow; told levels stay.

    argmin over σ of Σ_laws E‖x_i − y(σ)‖² / E‖y(σ)‖². A correction around the table, or a plot of it, goes by these levels.
    """
    if len(table.rows) == 1:
        return table
    first, last = table.levels[0], table.levels[-1]
    candidates = torch.logspace(math.log10(first), math.log10(last), points, dtype=torch.float64)[1:-1].tolist()
    gaps = torch.zeros(len(table.rows) - 1, len(candidates), dtype=torch.float64)
    for law in laws:
        state, states = Run(law, law.noise), list[Tensor]()
        for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
            state = (state.evaluated(q * sigma) if row.values else state).stepped(row)
            states.append(state.x)
        for k, sigma in enumerate(candidates):
            y = law.at(sigma)
            size = float(law.product(y, y))
            gaps[:, k] += torch.stack([law.product(x - y, x - y).cpu() for x in states[:-1]]) / size
    chosen = (first, *(candidates[int(k)] for k in gaps.argmin(1)), last)
    if any(b >= a for a, b in pairwise(chosen)):
        return table
    told = tuple(q * s / t for q, s, t in zip(table.told, table.levels, chosen, strict=False))
    return replace(table, levels=chosen, told=told)
