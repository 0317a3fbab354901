"""GITS (Chen et al. 2024): the grid with the least sum of local errors of Euler's method, for iPNDM.

    c_ij = E[ dist(y_i + (σ_j − σ_i) ε_i) − dist(y_j) ],      dist(x) = the distance of x from the chord through y_0 and y_n,
    V_k(i) = min_{j>i} c_ij + γ V_{k−1}(j)

y and ε are states and noise predictions of a fine run, whose levels are the only candidates. The coefficient γ makes errors
of later steps count more (γ > 1) or less; the published default is 1.15 with iPNDM-4, and the authors' program lists grids for
0.8 to 1.2. The one whose run ends nearest on the calibration's noise is taken here, in the method's favour.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steindiff.calibration.peers.base import Made, Task, nearest
from steindiff.calibration.teacher import Trajectories
from steindiff.errors import InputError
from steindiff.solvers import IPNDM, as_table

COEFFICIENT = 1.15
COEFFICIENTS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, COEFFICIENT, 1.2)
ORDERS = (4, 3, 2)
"""iPNDM-4 is what the authors recommend; lower orders hold better under guidance."""


def make(task: Task, coefficients: Sequence[float] = COEFFICIENTS, orders: Sequence[int] = ORDERS) -> Made:
    """The best of these coefficients and orders on the calibration's noise; one of each is taken as it is."""
    costs = deviations(task.law)
    paths = {tuple(cheapest(costs, task.nfe, coefficient)) for coefficient in coefficients}
    grids = [[task.law.levels[i] for i in places] for places in sorted(paths)]
    tables = [as_table(IPNDM(k), torch.tensor(grid, dtype=torch.float64), "GITS") for grid in grids for k in orders]
    return Made.table(nearest(tables, task.law))


def deviations(law: Trajectories) -> Tensor:
    """c, (n+1, n+1) float64; infinite where a step would not go down."""
    states, levels, n = law.states.double().flatten(2), torch.tensor(law.levels, dtype=torch.float64), len(law.levels)
    chord = states[-1] - states[0]
    unit = chord / chord.norm(dim=1, keepdim=True)
    exact = _distance(states, states[-1], unit)
    costs = torch.full((n, n), math.inf, dtype=torch.float64)
    for i in range(n - 1):
        prediction = law.slopes[i].double().flatten(1) / law.levels[i]
        ahead = (levels[i + 1 :] - levels[i]).to(states)
        reached = states[i] + ahead[:, None, None] * prediction
        costs[i, i + 1 :] = (_distance(reached, states[-1], unit) - exact[i + 1 :]).cpu()
    return costs


def _distance(points: Tensor, end: Tensor, unit: Tensor) -> Tensor:
    """The mean distance over images from the chords, (k,), of points (k, B, d)."""
    away = points - end
    across: Tensor = away - (away * unit).sum(-1, keepdim=True) * unit
    return across.square().sum(-1).sqrt().mean(-1)


def cheapest(costs: Tensor, steps: int, coefficient: float = 1.0) -> list[int]:
    """The places of the path of so many steps from the first to the last with the least Σ_k γ^k c.

    Raises:
        InputError: there are fewer places than steps.
    """
    n = len(costs)
    if steps > n - 1:
        raise InputError(f"{steps} steps between {n} levels: make the fine run finer")
    value, choices = costs[:, -1].clone(), list[Tensor]()
    for _ in range(steps - 1):
        value, best = (costs + coefficient * value).min(1)
        choices.append(best)
    places = [0]
    for best in reversed(choices):
        places.append(int(best[places[-1]]))
    return [*places, n - 1]
