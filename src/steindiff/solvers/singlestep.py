"""Singlestep solvers, which evaluate several times a step and carry nothing: Heun's method and DPM-Solver++ 2S and 3S."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.solvers.base import USUAL, Grid, Interval, Setting, Solver, Step
from steindiff.solvers.coefficients import ddim, phi
from steindiff.solvers.multistep import Row, weighted


@dataclass(frozen=True)
class Heun(Solver):
    """x̂ = x + (σ'−σ) d, d = (x−D)/σ; x' = x + (σ'−σ)(d + d̂)/2, d̂ = (x̂ − D(x̂, σ'))/σ'.

    This is EDM's sampler without churn (Karras et al. 2022, Algorithm 1 with c = 2). It takes two evaluations a step, and
    one (Euler's) on the last step when that goes to σ' = 0, as published, or when `euler_at_end` is set: with it a run of n
    steps costs 2n−1 evaluations on any grid.
    """

    euler_at_end: bool = False
    order = 2

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: None) -> Step:
        """Predict by Euler, correct by the trapezoidal rule."""
        denoised, (sigma, end) = denoiser(x, interval.sigma), interval.levels
        euler = ddim(x, denoised, sigma, end)
        if interval.last and self._ends_with_euler(interval.grid):
            return Step(euler, denoised, None)
        # x' in x and both values: the weight of x is that of Euler's step.
        r, of_second = end / sigma, (sigma / end - 1) / 2
        row = Row(r, (1 - r - of_second, of_second))
        return Step(weighted(row, x, (denoised, denoiser(euler, interval.sigma_next))), denoised, None)

    def nfe(self, sigmas: Tensor) -> int:
        """2n, or 2n − 1 where the last step is Euler's."""
        grid = Grid.of(sigmas)
        return 2 * grid.steps - self._ends_with_euler(grid)

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> "tuple[Heun, int]":
        """nfe/2 whole steps; where nfe is odd, (nfe+1)/2 steps, the last of them Euler's (NFE = 2·steps − 1)."""
        super().for_nfe(nfe)
        return replace(self, euler_at_end=nfe % 2 == 1), (nfe + 1) // 2

    def _ends_with_euler(self, grid: Grid) -> bool:
        return self.euler_at_end or grid.to_zero


@dataclass(frozen=True)
class _Stages(Solver):
    """A Runge–Kutta method of `order` stages each step, on inner points equally spaced in λ = −log σ (Lu et al. 2022).

    Args:
        tail: orders of the last intervals, 1 to `order`. The published method spends a budget that `order` does not divide in
            this way: order 3 with 5 evaluations is two intervals of orders 3 and 2, so `tail=(2,)`.
    """

    tail: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        fits = all(1 <= k <= self.order for k in self.tail)
        require(fits, f"each order must lie between 1 and {self.order}", tail=self.tail)

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: None) -> Step:
        """As many evaluations as the order of this interval."""
        stages = (_first, _second, _third)
        return stages[self._orders(interval.grid)[interval.index] - 1](denoiser, x, interval)

    def nfe(self, sigmas: Tensor) -> int:
        """The sum of the intervals' orders."""
        return sum(self._orders(Grid.of(sigmas)))

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> "tuple[_Stages, int]":
        """⌈nfe/order⌉ intervals, the last of a lower order where `order` does not divide nfe."""
        super().for_nfe(nfe)
        rest = nfe % self.order
        return replace(self, tail=(rest,) if rest else ()), -(-nfe // self.order)

    def _orders(self, grid: Grid) -> list[int]:
        orders = [*[self.order] * grid.steps, *self.tail][-grid.steps :]
        return [*orders[:-1], 1] if grid.to_zero else orders


@dataclass(frozen=True)
class DPMpp2S(_Stages):
    """x_m = DDIM(x, √(σσ')), x' = r x + (1−r) D(x_m) (Lu et al. 2022, Algorithm 1 with r₁ = ½)."""

    order = 2


@dataclass(frozen=True)
class DPMpp3S(_Stages):
    """x' = r x + φ₀ D₀ + (3/2) φ₁ (D₂ − D₀), D₂ at two thirds of the step in λ (r₁ = ⅓, r₂ = ⅔)."""

    order = 3


def _first(denoiser: Denoiser, x: Tensor, interval: Interval) -> Step:
    denoised = denoiser(x, interval.sigma)
    return Step(ddim(x, denoised, *interval.levels), denoised, None)


def _second(denoiser: Denoiser, x: Tensor, interval: Interval) -> Step:
    start, end = interval.levels
    middle, denoised = math.sqrt(start * end), denoiser(x, interval.sigma)
    at_middle = denoiser(ddim(x, denoised, start, middle), interval.sigma.new_full((), middle))
    return Step(ddim(x, at_middle, start, end), denoised, None)


def _third(denoiser: Denoiser, x: Tensor, interval: Interval) -> Step:
    """Inner points at h/3 and 2h/3; the slope of D from the second one."""
    start, end = interval.levels
    h, d0, at = math.log(start / end), denoiser(x, interval.sigma), interval.sigma.new_full
    s1, s2 = (start * math.exp(-c * h) for c in (1 / 3, 2 / 3))
    d1 = denoiser(ddim(x, d0, start, s1), at((), s1))
    d2 = denoiser(weighted(_sloped(s2 / start, 2 * phi(2 * h / 3)[1]), x, (d0, d1)), at((), s2))
    return Step(weighted(_sloped(end / start, 1.5 * phi(h)[1]), x, (d0, d2)), d0, None)


def _sloped(r: float, slope: float) -> Row:
    """R x + (1−r) D₀ + slope (D − D₀)."""
    return Row(r, (1 - r - slope, slope))
