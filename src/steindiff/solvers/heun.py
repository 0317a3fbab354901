"""Heun's method as in EDM (Karras et al. 2022, Algorithm 1 with c = 2 and no churn)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import ddim, noise_of

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(Solver):
    """x̂ = x + (σ'−σ) d, d = (x−D)/σ; x' = x + (σ'−σ)(d + d̂)/2, d̂ = (x̂ − D(x̂, σ'))/σ'.

    Two evaluations a step; one (Euler's) on the last step when it goes to σ' = 0, as published, or when `euler_at_end`:
    with it a run of n steps costs 2n−1 evaluations on any grid.
    """

    euler_at_end: bool = False
    order: int = 2

    def init(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Grid:
        """The state is the grid."""
        return Grid.of(sigmas)

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: Grid) -> Step:
        """Predict by Euler, correct by the trapezoidal rule."""
        denoised = denoiser(x, interval.sigma)
        euler = ddim(x, denoised, interval.sigma, interval.sigma_next)
        if self._euler(state, interval.last):
            return Step(euler, denoised, state)
        d = noise_of(x, denoised, interval.sigma)
        d_hat = noise_of(euler, denoiser(euler, interval.sigma_next), interval.sigma_next)
        return Step(x + (interval.sigma_next - interval.sigma) * (d + d_hat) / 2, denoised, state)

    def nfe(self, sigmas: Tensor) -> int:
        """2n, or 2n − 1 where the last step is Euler's."""
        grid = Grid.of(sigmas)
        return 2 * grid.steps - self._euler(grid, last=True)

    def _euler(self, grid: Grid, last: bool) -> bool:
        return last and (self.euler_at_end or grid.to_zero)
