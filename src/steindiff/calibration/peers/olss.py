"""OLSS (Duan et al. 2023): the next state by least squares in the span of the first state and all noise predictions.

    x_{i+1} = a_i x_0 + Σ_{j≤i} w_ij ε_j,       (a_i, w_i) = argmin E‖y(σ_{i+1}) − a y(σ_0) − Σ_j w_j ε(y(σ_j))‖²

The regression is teacher-forced: noise predictions are those on the exact flow, so that no step sees the errors of earlier
ones. There is no ridge. Levels are chosen among those of the fine run: for a limit of the error, every step goes as far as it
can within the limit, and the smallest limit is taken that N steps can keep. This search spans by the last state instead of
the first, and its errors are of x/√(1+σ²), as the authors have them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from steindiff.calibration.peers.base import Made, Task, nearest
from steindiff.calibration.teacher import Trajectories
from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers import Interval, Solver, Step, Tabulated, as_table

BISECTIONS = 20


@dataclass(frozen=True)
class FromNoise(Solver):
    """x_{i+1} = a_i x_0 + Σ_{j≤i} w_ij ε_j, ε = (x − D)/σ.

    Args:
        rows: (a_i, w_i0, w_i1, …) of each step, oldest first.
    """

    rows: tuple[tuple[float, ...], ...]
    order = 1

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor, ...] | None) -> Step:
        """One evaluation and the weighted sum; the state holds x_0 and the noise predictions, oldest first."""
        denoised = denoiser(x, interval.sigma)
        known = (*(state or (x,)), (x - denoised) / interval.grid.levels[interval.index])
        terms = [w * z for w, z in zip(self.rows[interval.index], known, strict=True)]
        return Step(torch.stack(terms).sum(0), denoised, known)

    def nfe(self, sigmas: Tensor) -> int:
        """One a step."""
        return len(sigmas) - 1


def make(task: Task) -> Made:
    """OLSS with levels by its own search, or with evenly spaced levels of the fine run where those end nearer."""
    end = len(task.law.levels) - 1
    even = [round(i * end / task.nfe) for i in range(task.nfe + 1)]
    return Made.table(nearest([table(task.law, places) for places in (path(task.law, task.nfe), even)], task.law))


def table(law: Trajectories, places: list[int]) -> Tabulated:
    """The method on these places among the levels of the fine run, the first and the last included."""
    noise, predictions = law.noise, [law.slopes[i] / law.levels[i] for i in places[:-1]]
    fits = (_solution([noise, *predictions[: k + 1]], law.states[i])[0] for k, i in enumerate(places[1:]))
    rows = tuple(tuple(fit.tolist()) for fit in fits)
    sigmas = torch.tensor([law.levels[i] for i in places], dtype=torch.float64)
    return as_table(FromNoise(rows), sigmas, "OLSS")


def path(law: Trajectories, steps: int) -> list[int]:
    """Places of the levels of so many steps: the smallest limit of a step's error that they can keep."""
    end = len(law.levels) - 1
    if steps > end:
        raise InputError(f"{steps} steps: the fine run has {end}; make it finer")

    @cache
    def error(before: tuple[int, ...], to: int) -> float:
        known = [law.states[before[-1]], *(law.slopes[i] / law.levels[i] for i in before)]
        return _solution(known, law.states[to])[1] / (1 + law.levels[to] ** 2)

    low, high = -40.0, math.log(float(law.noise.double().square().mean()))
    found = _within(error, math.exp(high), steps, end) or [0, end]
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        tried = _within(error, math.exp(middle), steps, end)
        low, high, found = (middle, high, found) if tried is None else (low, middle, tried)
    while len(found) <= steps:  # fewer steps keep this limit, but not a slightly smaller one
        gaps = [math.log(law.levels[a] / law.levels[b]) * (b - a > 1) for a, b in pairwise(found)]
        k = gaps.index(max(gaps))
        found = [*found[: k + 1], (found[k] + found[k + 1]) // 2, *found[k + 1 :]]
    return found


def _within(error: Callable[[tuple[int, ...], int], float], limit: float, steps: int, end: int) -> list[int] | None:
    """The places of steps that go as far as the limit lets them; None where there are too many."""
    places = [0]
    for _ in range(steps):
        low, high = places[-1] + 1, end
        while high > low:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if error(tuple(places), middle) <= limit else (low, middle - 1)
        places.append(low)
        if low == end:
            return places
    return None


def _solution(known: list[Tensor], target: Tensor) -> tuple[Tensor, float]:
    """Coefficients of the least-squares combination, and its mean square error."""
    columns = torch.stack([z.double().flatten() for z in known], 1).cpu()
    wanted = target.double().flatten().cpu()
    solution = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0]
    return solution, float((columns @ solution - wanted).square().mean())
