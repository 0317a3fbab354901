"""PAS (Wang et al. 2025): a few coordinates in the principal directions of an image's own trajectory, at a few steps.

    x' = x + (σ' − σ) d̃,    d̃ = Σ_k c_k u_k,    u_1 = d/|d|,  u_2, u_3, u_4: principal directions of x_0, d̃_0, …, d̃_{i−1}, d

d is the direction of Euler's method or of iPNDM. The principal directions are made orthogonal to those before them, and point
the way x − x_0 does. Every image has its own, so that this is no linear method and no table; the numbers c are common. They
minimise E|x' − y(σ')|₁, step after step on the states that the corrected run reaches, and a step is corrected only where that
lowers the error by a threshold.

The authors take c as it is. That fits images of many coordinates, where |d| hardly varies. `relative` lets c count in |d|.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff import grids
from steindiff.calibration.peers.base import Made, Task
from steindiff.calibration.teacher import Trajectories
from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import combine
from steindiff.solvers.deis import IPNDM

DIRECTIONS = 4
"""u_1 to u_4."""
THRESHOLD = 1e-4
"""How much a corrected step must lower the mean absolute error (the published value)."""
ORDERS = (1, 3)
"""Euler's method and iPNDM-3, which the authors correct."""
FIRST = 1
"""The first step that can be corrected: before, there are too few directions."""
REWEIGHTINGS = 40
_DEPENDENT = 1e-5
"""A vector of which orthogonalisation leaves a smaller part adds no direction."""


class _Path(NamedTuple):
    """x_0 and the directions taken, oldest first, and the noise predictions, newest first."""

    past: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]


@dataclass(frozen=True)
class Directed(Solver):
    """Euler's method or iPNDM with corrected directions.

    Args:
        order: of iPNDM; 1 is Euler's method.
        coordinates: c of each step; empty where the step is not corrected, as are steps beyond the last.
        relative: whether c counts in |d|.
    """

    order: int = 1
    coordinates: tuple[tuple[float, ...], ...] = ()
    relative: bool = False

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3, 4), "choose 1 to 4 for iPNDM", order=self.order)
        fits = all(len(c) in (0, DIRECTIONS) and all(map(math.isfinite, c)) for c in self.coordinates)
        require(fits, f"need {DIRECTIONS} finite coordinates a step, or none", coordinates=self.coordinates)

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> _Path:
        """The first state spans the trajectory too."""
        return _Path((x,), ())

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: _Path) -> Step:
        """Evaluate, correct the direction where this step is one of those, and follow it."""
        start, end = interval.grid.levels[interval.index : interval.index + 2]
        denoised = denoiser(x, interval.sigma)
        noises = ((x - denoised) / start, *state.noises)
        d = direction(noises, interval, self.order)
        for c in self.coordinates[interval.index : interval.index + 1]:
            d = combine(c, spanned(x, d, state.past, self.relative)) if c else d
        return Step(x + (end - start) * d, denoised, _Path((*state.past, d), noises[: self.order - 1]))

    def nfe(self, sigmas: Tensor) -> int:
        """One evaluation a step."""
        return len(sigmas) - 1


def direction(noises: tuple[Tensor, ...], interval: Interval, order: int) -> Tensor:
    """iPNDM's combination of noise predictions, newest first."""
    start, end = interval.grid.levels[interval.index : interval.index + 2]
    weights = IPNDM(order).weights(interval.grid, interval.index).values
    return combine([w / (end - start) for w in weights], noises[: len(weights)])


def spanned(x: Tensor, d: Tensor, past: tuple[Tensor, ...], relative: bool = False) -> tuple[Tensor, ...]:
    """u_1 to u_4 of every image, (B, *event) each and |d| long where relative; those that there are not are zero."""
    rows = torch.stack([*past, d], dim=1).double().flatten(2)
    centred = rows - rows.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
    count = min(DIRECTIONS - 1, len(past))
    scales = values[:, -count:].flip(1).clamp(min=1e-300).sqrt()
    principal = vectors[:, :, -count:].flip(2).transpose(1, 2) @ centred / scales[..., None]
    wide, towards = d.double().flatten(1), (x - past[0]).double().flatten(1)
    length = wide.norm(dim=1, keepdim=True)
    basis = [wide / length.clamp(min=1e-300)]
    for v in principal.unbind(1):
        for u in basis:
            v = v - (u * v).sum(1, keepdim=True) * u
        left = v.norm(dim=1, keepdim=True)
        unit = torch.where(left > _DEPENDENT, v / left.clamp(min=_DEPENDENT), 0.0)
        basis.append(torch.where((unit * towards).sum(1, keepdim=True) < 0, -unit, unit))
    basis += [torch.zeros_like(wide)] * (DIRECTIONS - len(basis))
    return tuple((u * length if relative else u).reshape(x.shape).to(x) for u in basis)


def make(task: Task) -> Made:
    """The corrected method and grid that end nearest on the calibration's noise: Euler and iPNDM-3, c as it is or relative."""
    best, found = math.inf, None
    for order, relative, name in product(ORDERS, (False, True), ("karras", "log_snr")):
        sigmas = grids.make(name, task.nfe, task.setting.sigma_min, task.setting.sigma_max)
        solver, miss = searched(task.law, sigmas, order, relative)
        if miss < best or found is None:
            best, found = miss, Made(solver, tuple(sigmas.tolist()))
    return found  # type: ignore[return-value]


def searched(law: Trajectories, sigmas: Tensor, order: int, relative: bool) -> tuple[Directed, float]:
    """The coordinates of the steps that are worth correcting, and the endpoint RMSE on the noise that they are fitted to."""
    grid, chosen = Grid.of(sigmas), list[tuple[float, ...]]()
    x, plain = law.noise + law.mean, Directed(order, relative=relative)
    state = plain.init(law.denoiser, x, grid)
    for i in range(grid.steps):
        interval = grid.interval(i)
        with torch.no_grad():
            moved = plain.step(lambda z, s: law.denoise(z - law.mean, float(s)) + law.mean, x, interval, state)
        d, h = moved.state.past[-1], grid.levels[i + 1] - grid.levels[i]
        chosen.append(())
        if i >= FIRST:
            basis = spanned(x, d, state.past, relative)
            wanted = (law.at(grid.levels[i + 1]) + law.mean - x) / h
            start = (float(d.flatten(1).norm(dim=1).mean()) if not relative else 1.0, *[0.0] * (DIRECTIONS - 1))
            c = least_absolute(
                torch.stack(basis).flatten(1), wanted.flatten(), torch.tensor(start, dtype=torch.float64)
            ).tolist()
            better = combine(c, basis)
            gain = abs(h) * float((wanted - d).abs().double().mean() - (wanted - better).abs().double().mean())
            if gain > THRESHOLD:
                chosen[i], d = tuple(c), better
        x, state = x + h * d, _Path((*state.past, d), moved.state.noises)
    return Directed(order, tuple(chosen), relative), law.rmse(x - law.mean)


def least_absolute(columns: Tensor, wanted: Tensor, start: Tensor) -> Tensor:
    """argmin Σ|wanted − Σ_k c_k columns_k|, by reweighted least squares; no worse than the start. (K,) float64."""
    Z, y, best = columns.double(), wanted.double(), start.to(columns.device)
    rounding = 1e-6 * float(y.abs().mean()) + torch.finfo(torch.float64).tiny
    c, least = best, math.inf
    for _ in range(REWEIGHTINGS):
        residual = (y - c @ Z).abs()
        if float(residual.sum()) < least:
            best, least = c, float(residual.sum())
        weighted = Z / residual.clamp(min=rounding)
        gram = weighted @ Z.T
        ridge = 1e-12 * gram.diagonal().max() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        c = torch.linalg.solve(gram + ridge, weighted @ y)
    return best
