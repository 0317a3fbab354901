"""OSS (Pei et al. 2025): the grid by dynamic programming on the student's own runs.

    x_k(j) = the step to σ_j from x_{k−1}(i),      i = argmin_{i<j} E‖step(x_{k−1}(i), σ_i → σ_j) − y(σ_j)‖²

So x_k(j) is the state that the best run found so far has after k steps at level j, and the error at the end after N steps is
made small recursively. The published method has Euler's steps and searches for each image; here one grid is searched for all
images of a batch together, since a table is for all. iPNDM is tried as the inner method too, each path with its own history.
The recursion is greedy: with two steps it finds the best grid, with more it need not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.calibration.peers.base import Made, Task, nearest
from steindiff.calibration.teacher import Trajectories
from steindiff.errors import InputError
from steindiff.solvers import IPNDM, Grid, as_table

ORDERS = (1, 2, 3, 4)
IMAGES = 16
"""How many images the search runs with: it evaluates them at every level, N times for each inner method."""


@dataclass(frozen=True, eq=False)
class _Path:
    """The best run found to a level: its places, its state and its noise predictions, newest first."""

    places: tuple[int, ...]
    x: Tensor
    predictions: tuple[Tensor, ...] = ()


def make(task: Task, orders: Sequence[int] = ORDERS) -> Made:
    """The best inner order on the calibration's noise; order 1 is Euler's method, which is DDIM."""
    some = task.some(IMAGES)
    tables = []
    for order in orders:
        sigmas = torch.tensor([some.levels[i] for i in search(some, task.nfe, order)], dtype=torch.float64)
        tables.append(as_table(IPNDM(order), sigmas, "OSS"))
    return Made.table(nearest(tables, task.law))


def search(law: Trajectories, steps: int, order: int = 1) -> list[int]:
    """The places of the grid of so many steps of iPNDM among the levels of the fine run.

    Raises:
        InputError: there are fewer levels than steps, or no run has finite states.
    """
    end = len(law.levels) - 1
    if steps > end:
        raise InputError(f"{steps} steps: the fine run has {end}; make it finer")
    paths = {0: _Path((0,), law.noise)}
    for k in range(steps):
        left = steps - 1 - k
        paths = _longer(law, [_evaluated(law, path) for path in paths.values()], order, left)
    if end not in paths:
        raise InputError("no run of the search has finite states: the network is not finite at some level")
    return list(paths[end].places)


def _evaluated(law: Trajectories, path: _Path) -> _Path:
    """The same with the noise prediction at its level."""
    sigma = law.levels[path.places[-1]]
    prediction = (path.x - law.denoise(path.x, sigma)) / sigma
    return _Path(path.places, path.x, (prediction, *path.predictions))


def _longer(law: Trajectories, paths: list[_Path], order: int, left: int) -> dict[int, _Path]:
    """The best path with one more step to each level from which the end can be reached in the steps that are left."""
    end, solver, found = len(law.levels) - 1, IPNDM(order), dict[int, _Path]()
    least, last = dict[int, float](), end - left
    for path in paths:
        k, before = len(path.places) - 1, [law.levels[i] for i in path.places]
        for j in range(path.places[-1] + 1, last + 1) if left else (end,):
            row = solver.weights(Grid.of(torch.tensor([*before, law.levels[j]], dtype=torch.float64)), k)
            x = row.a * path.x
            for w, prediction in zip(row.values, path.predictions, strict=False):
                x = x + w * prediction
            error = float((x - law.states[j]).double().square().mean())
            if error < least.get(j, math.inf):
                least[j], found[j] = error, _Path((*path.places, j), x, path.predictions[: order - 1])
    return found
