"""Gauss–Newton on the end-point error, over all numbers of a table at once.

    minimise over θ    F(θ) = ½ Σ_laws log( E‖x_n − y(σ_n)‖² + β Σ_i v/(v + τ_i²) E‖x_i − y(τ_i)‖² ),
    θ = all a_i and w_ij, and the logarithms of the told levels τ_i = q_i σ_i; v the data's variance

A law counts by the logarithm of its error, so that easy and hard laws count alike. The nominal levels σ_i are no parameters: a
run depends on them through the told levels only. With β = 0 the states on the way may go where they like; β > 0 keeps them near
the exact flow, so that a table decides as the flow does where a law has clusters. The steps are those of Levenberg and
Marquardt, (JᵀJ + μ diag JᵀJ) δ = −Jᵀr. J is taken by forward differences, without derivatives of the network: a number of step
i changes nothing before that step, so its run branches off there. Of all tables on the way, the one with the lowest error on
held-out laws or noises is kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from steindiff.calibration.fit import Run
from steindiff.calibration.teacher import Trajectories, check
from steindiff.errors import InputError
from steindiff.solvers import Row, Tabulated
from steindiff.solvers.multistep import weighted

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
        along: β, what the errors of the states on the way count.
        difference: the step of a forward difference.
        singly: whether held-out images count one by one, each by the logarithm of its own error. Where few images choose, one
            that ends in another cluster then decides no more than any other.
    """

    iterations: int = 20
    patience: int = 4
    gain: float = 2e-4
    damping: float = 1e-3
    floor: float = 3e-4
    along: float = 0.0
    difference: float = DIFFERENCE
    singly: bool = False


@dataclass(frozen=True)
class Progress:
    """F of the fitted and of the held-out laws after an accepted step."""

    iteration: int
    fitted: float
    held: float


def run(table: Tabulated, law: Trajectories) -> Tensor:
    """The end states of a run from the law's noise, about the mean, (B, *event)."""
    return _run(table, law)[0]


def errors(table: Tabulated, laws: Sequence[Trajectories]) -> Tensor:
    """The squared error of each law's end states, as a fraction of its spread, float64."""
    return _misses(table, laws, 0.0)


def score(table: Tabulated, laws: Sequence[Trajectories], floor: float = Settings.floor, singly: bool = False) -> float:
    """The mean logarithm of the relative error, F without the states on the way; infinite where a run diverges.

    The errors are those of the laws, or of all their images one by one (`singly`).
    """
    squares = torch.cat([_of_images(run(table, law), law) for law in laws]) if singly else errors(table, laws)
    return _mean_log(squares, floor**2)


def _of_images(end: Tensor, law: Trajectories) -> Tensor:
    """The squared error of each image as a fraction of the mean spread of one, (B,) float64."""
    return ((end - law.ends).double().square() * law.weight).flatten(1).sum(1).cpu() * len(end)


def _misses(table: Tabulated, laws: Sequence[Trajectories], along: float) -> Tensor:
    """The squares whose mean logarithm F is, one a law."""
    return torch.stack([_miss(law, *_run(table, law), along).cpu() for law in laws])


def _miss(law: Trajectories, end: Tensor, stops: list[tuple[float, Tensor]], along: float) -> Tensor:
    gap = end - law.ends
    total = law.product(gap, gap)
    for tau, x in stops if along else ():
        gap = x - _flow_at(law, tau)
        total = total + along * _share(law, tau) * law.product(gap, gap)
    return total


def _flow_at(law: Trajectories, tau: float) -> Tensor:
    """y(τ); a told level may lie outside the flow's levels, above all at a first step that evaluates: then y at their end."""
    return law.at(min(max(tau, law.levels[-1]), law.levels[0]))


def _run(table: Tabulated, law: Trajectories) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """The end states, and every told level with the states that it is told for."""
    states = _states(table, law)
    steps = zip(table.levels, table.told, table.rows, states, strict=False)
    return states[-1], [(q * sigma, x) for sigma, q, row, x in steps if row.values]


def _states(table: Tabulated, law: Trajectories) -> list[Tensor]:
    """The states of a run, from the law's noise to the end."""
    state, states = Run(law, law.noise), [law.noise]
    for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
        state = (state.evaluated(q * sigma) if row.values else state).stepped(row)
        states.append(state.x)
    return states


def _share(law: Trajectories, tau: float) -> float:
    """v/(v + τ²), v the mean variance of a coordinate of the data: a state's error counts as a fraction of its own size."""
    return law.variance / (law.variance + tau**2)


def refine(
    table: Tabulated,
    laws: Sequence[Trajectories],
    held: Sequence[Trajectories],
    settings: Settings = Settings(),
    tell: Callable[[Progress], object] = lambda progress: None,
    free: Sequence[bool] | None = None,
) -> Tabulated:
    """Of the tables that Gauss–Newton steps on `laws` reach, the best one on `held` laws or noises, which it never fits.

    Only the numbers that are `free` move, in the order of `parameters`; None is all.

    Raises:
        InputError: no trajectories, levels that are not the table's, or end states of the table that are not finite.
    """
    check(laws, table.levels)
    check(held, table.levels)
    floor, mu, stale = settings.floor**2, settings.damping, 0
    kept, fitted, best = table, _misses(table, laws, settings.along), score(table, held, settings.floor, settings.singly)
    if not math.isfinite(best + _mean_log(fitted, floor)):
        raise InputError(
            "the table's end states are not finite on a law: fit it, or give it other levels, before it is refined"
        )
    moving = torch.ones(len(parameters(table)), dtype=torch.float64) if free is None else torch.tensor(free).double()
    for iteration in range(settings.iterations):
        jtj, jtr = _normal_equations(table, laws, fitted + floor, settings)
        equations = moving * jtj * moving[:, None], moving * jtr
        before = _mean_log(fitted, floor)
        table, fitted, mu = _descended(table, laws, equations, fitted, mu, settings)
        here = score(table, held, settings.floor, settings.singly)
        kept, best, stale = (table, here, 0) if here < best else (kept, best, stale + 1)
        tell(Progress(iteration, _mean_log(fitted, floor), here))
        if stale >= settings.patience or before - _mean_log(fitted, floor) < settings.gain:
            break
    return kept


def _descended(
    table: Tabulated,
    laws: Sequence[Trajectories],
    equations: tuple[Tensor, Tensor],
    fitted: Tensor,
    mu: float,
    settings: Settings,
) -> tuple[Tabulated, Tensor, float]:
    """The table after a step that lowers F, its errors, and μ; the same table where eight dampings find none."""
    (jtj, jtr), floor = equations, settings.floor**2
    if not bool(jtj.isfinite().all() & jtr.isfinite().all()):
        raise InputError("the derivatives of the table's end states are not finite: a law or a network gives NaN near its runs")
    idle = torch.finfo(torch.float64).tiny * torch.eye(len(jtj), dtype=torch.float64)  # a number that changes nothing stays
    for _ in range(8):
        delta = torch.linalg.solve(jtj + mu * jtj.diag().diag() + idle, -jtr)
        if bool(delta.isfinite().all()):
            candidate = moved(table, delta)
            tried = _misses(candidate, laws, settings.along)
            if _mean_log(tried, floor) < _mean_log(fitted, floor):
                return candidate, tried, max(mu / 5, 1e-9)
        mu *= 5
    return table, fitted, mu


def _mean_log(squares: Tensor, floor: float) -> float:
    """F; infinite where an error is not finite."""
    value = float((squares + floor).log().mean()) / 2
    return value if math.isfinite(value) else math.inf


def _normal_equations(
    table: Tabulated, laws: Sequence[Trajectories], scale: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """JᵀJ and Jᵀr, each law divided by its F."""
    count, h = len(parameters(table)), settings.difference
    jtj, jtr = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for law, square in zip(laws, scale.tolist(), strict=True):
        end, stops = _branches(table, law, h)
        misses = [((end - law.ends).double() / square**0.5, None)]
        for tau, x in stops if settings.along else ():
            factor = (settings.along * _share(law, tau) / square) ** 0.5
            y = _flow_at(law, tau)
            misses.append(((x - y).double() * factor, (y - _flow_at(law, tau * math.exp(h))).double() * factor))
        for miss, own in misses:
            slopes = torch.cat([miss[1:] - miss[0], *(() if own is None else (own[None],))]).div(h)
            both = torch.cat([slopes, miss[:1]]) * law.weight.sqrt()
            products = (both.flatten(1) @ both.flatten(1).mT).cpu()
            known = len(slopes)
            jtj[:known, :known] += products[:-1, :-1]
            jtr[:known] += products[:-1, -1]
    return jtj, jtr


def jacobian(table: Tabulated, law: Trajectories, h: float = DIFFERENCE) -> tuple[Tensor, Tensor]:
    """The end states (B, *event), and their derivatives by every parameter, (P, B, *event), in the order of `parameters`."""
    x, _ = _branches(table, law, h)
    return x[0], (x[1:] - x[0]) / h


def _branches(table: Tabulated, law: Trajectories, h: float) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """A run, and one branch of it for each parameter: their end states (1+P, B, *event), and what they pass on the way.

    That is every told level, with the states that it is told for, of the run and of the branches so far. The first parameter
    after those is the told level itself.
    """
    x, values, stops = law.noise[None], tuple[Tensor, ...](), list[tuple[float, Tensor]]()
    for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
        here, told = x[:1], list[Tensor]()
        if row.values:
            stops.append((q * sigma, x))
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
    return x, stops


def parameters(table: Tabulated) -> list[float]:
    """θ: step by step the logarithm of the told level (where the step evaluates), a, and the weights."""
    theta = list[float]()
    for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False):
        theta += [*([math.log(q * sigma)] if row.values else []), row.a, *row.values]
    return theta


def moved(table: Tabulated, delta: Tensor) -> Tabulated:
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
        states = _states(table, law)[1:-1]
        for k, sigma in enumerate(candidates):
            y = law.at(sigma)
            size = float(law.product(y, y))
            gaps[:, k] += torch.stack([law.product(x - y, x - y).cpu() for x in states]) / size
    chosen = (first, *(candidates[int(k)] for k in gaps.argmin(1)), last)
    if any(b >= a for a, b in pairwise(chosen)):
        return table
    told = tuple(q * s / t for q, s, t in zip(table.told, table.levels, chosen, strict=False))
    return replace(table, levels=chosen, told=told)
