"""DC-Solver (Zhao et al. 2024): UniPC, whose newest value is moved along the curve of the last three, by one number a step.

    D_i ← Σ_j ℓ_j(t̂) D_j,        t̂ = t_{i−1} + ρ_i (t_i − t_{i−1}),        ρ_i = argmin E‖x_{i+1} − y(σ_{i+1})‖²

ℓ is the Lagrange basis through this value and the two before, in the time t of the VP schedule. ρ = 1 leaves the value as it
is, and the first two steps are left so. Later steps remember the moved value. The ratios are found in order, each on
the states that the steps before it reach. The authors descend by gradients from ρ = 1; the search here covers that
neighbourhood evenly and then narrows down, which needs no derivative.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from steindiff import grids
from steindiff.calibration.peers.base import Made, Task, nearest
from steindiff.calibration.teacher import Trajectories
from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.schedules import VPLinear
from steindiff.solvers import UniPC, as_table
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import combine

SEARCHED = 10
"""Noises that a ratio is searched on (the authors' number)."""
LOW, HIGH, EVEN, NARROWING = -1.0, 3.0, 17, 12
"""The ratios that are tried: so many evenly, then golden sections about the best."""
GRIDS = ("log_snr", "karras", "time_uniform")
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Compensated(Solver):
    """A step of UniPC from a newest value that is moved by the step's ratio.

    Args:
        base: the method, with its corrector.
        ratios: ρ, one number a step; 1 changes nothing.
    """

    base: UniPC
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, self.ratios)), "need finite ratios", ratios=self.ratios)

    @property
    def order(self) -> int:  # type: ignore[override]
        """The base's."""
        return self.base.order

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """No values yet. Raises InputError where there is not one ratio a step."""
        require(len(self.ratios) == grid.steps, f"need one ratio for each of {grid.steps} steps", ratios=self.ratios)
        return ()

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor, ...]) -> Step:
        """Move the newest of the values, newest first, and take the base's step."""
        if len(state) < 3 or self.ratios[interval.index] == 1:
            values = state
        else:
            values = (combine(lagrange(interval, self.ratios[interval.index]), state), *state[1:])
        step = self.base.step(denoiser, x, interval, values)
        known = values or (step.denoised,)
        return step._replace(state=(*step.state[:1], *known)[:3])

    def nfe(self, sigmas: Tensor) -> int:
        """One evaluation a step."""
        return self.base.nfe(sigmas)


def lagrange(interval: Interval, ratio: float) -> list[float]:
    """ℓ_j(t̂) of this step's level and the two before."""
    levels = interval.grid.levels[interval.index - 2 : interval.index + 1][::-1]
    times = VPLinear().time(torch.tensor(levels, dtype=torch.float64)).tolist()
    at = times[1] + ratio * (times[0] - times[1])
    return [math.prod((at - s) / (t - s) for s in times if s != t) for t in times]


def make(task: Task) -> Made:
    """The base and the grid whose compensated run ends nearest on the calibration's noise: orders 3 and 2, bh1 and bh2."""
    some, found = task.some(SEARCHED), []
    for order, variant, name in product((3, 2), ("bh1", "bh2"), GRIDS):
        sigmas = grids.make(name, task.nfe, task.setting.sigma_min, task.setting.sigma_max)
        base = UniPC(order, "bh1" if variant == "bh1" else "bh2")
        found.append(as_table(compensated(base, sigmas, some), sigmas, "DC-Solver"))
    return Made.table(nearest(found, task.law))


def compensated(base: UniPC, sigmas: Tensor, law: Trajectories) -> Compensated:
    """The base with the ratios that bring every step nearest the exact flow, from the first to the last."""
    grid, network = Grid.of(sigmas), _network(law)
    ratios, x = (1.0,) * grid.steps, law.noise + law.mean
    state: tuple[Tensor, ...] = ()
    for i in range(grid.steps):
        target = law.at(grid.levels[i + 1]) + law.mean
        search = _Search(base, ratios, network, x, grid.interval(i), state, target)
        if len(state) == 3:
            ratios = search.with_ratio(_least(search.miss))
        x, _, state, _ = search.taken(ratios[i])
    return Compensated(base, ratios)


@dataclass(frozen=True, eq=False)
class _Search:
    """One step, for any ratio: the ratios so far, where the run is, and where the exact flow goes."""

    base: UniPC
    ratios: tuple[float, ...]
    network: Denoiser
    x: Tensor
    interval: Interval
    state: tuple[Tensor, ...]
    target: Tensor

    def with_ratio(self, ratio: float) -> tuple[float, ...]:
        """The ratios with this step's."""
        i = self.interval.index
        return (*self.ratios[:i], ratio, *self.ratios[i + 1 :])

    def taken(self, ratio: float) -> Step:
        """The step."""
        return Compensated(self.base, self.with_ratio(ratio)).step(self.network, self.x, self.interval, self.state)

    def miss(self, ratio: float) -> float:
        """The mean square of how far it ends from the exact flow."""
        return float((self.taken(ratio).x - self.target).double().square().mean())


def _network(law: Trajectories) -> Denoiser:
    """The law's denoiser of all its images."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad():
            return law.denoise(x - law.mean, float(sigma)) + law.mean

    return denoiser


def _least(f: Callable[[float], float]) -> float:
    """Where a function of a ratio is least, to a thousandth; 1 where nothing is below it."""
    width = (HIGH - LOW) / (EVEN - 1)
    values = {r: f(r) for r in _evenly()}
    best = min(values, key=lambda r: values[r])
    low, high = best - width, best + width
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    values[a], values[b] = f(a), f(b)
    for _ in range(NARROWING):
        if values[a] < values[b]:
            high, b, a = b, a, b - _GOLDEN * (b - low)
            values[a] = f(a)
        else:
            low, a, b = a, b, a + _GOLDEN * (high - a)
            values[b] = f(b)
    best = min(values, key=lambda r: values[r])
    return best if values[best] < values[1.0] else 1.0


def _evenly() -> Iterator[float]:
    return (LOW + i * (HIGH - LOW) / (EVEN - 1) for i in range(EVEN))
