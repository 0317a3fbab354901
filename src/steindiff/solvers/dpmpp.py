"""DPM-Solver++ (Lu et al. 2022): exponential integrators in data prediction, multistep (2M, 3M) and singlestep (2S, 3S).

With λ = −log σ, h = λ' − λ and r = σ'/σ = e^(−h), the exact solution over a step is

    y(λ') = r y + ∫_λ^λ' e^(τ−λ') D(τ) dτ,      ∫ e^(τ−λ') dτ = 1 − r,

and the methods differ in how they extrapolate D along the step. `phi` are the integrals of e^(τ−λ') ((τ−λ)/h)^k:
φ₀ = 1−r, φ₁ = 1 − φ₀/h, φ₂ = 1 − 2φ₁/h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers.base import Grid, History, Interval, Solver, Step
from steindiff.solvers.coefficients import ddim, phi

__all__ = ["DPMpp2M", "DPMpp2S", "DPMpp3M", "DPMpp3S"]


def _log_steps(grid: Grid, index: int, count: int) -> list[Tensor]:
    """h of this step and of the `count` steps before it, newest first."""
    lam = -grid.sigmas[index - count : index + 2].log()
    return list(lam.diff().flip(0))


@dataclass(frozen=True)
class _Multistep(Solver):
    """Evaluate D once, extrapolate it from the history, integrate.

    Args:
        lower_order_final: in runs of fewer than 15 steps the last step is of order 1, the one before it of order 2 at most.
    """

    lower_order_final: bool = True
    order: int = 2

    def init(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> History:
        """An empty history."""
        return History(Grid.of(sigmas))

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: History) -> Step:
        """One evaluation."""
        denoised = denoiser(x, interval.sigma)
        r = interval.sigma_next / interval.sigma
        increment = self._increment(denoised, state, interval.index)
        return Step(r * x + increment, denoised, state.push(denoised, self.order - 1))

    def nfe(self, sigmas: Tensor) -> int:
        """One a step."""
        return len(sigmas) - 1

    def _increment(self, denoised: Tensor, state: History, index: int) -> Tensor:
        """∫ e^(τ−λ') D(τ) dτ, with D extrapolated at the order this step allows."""
        order = min(state.grid.order(index, self.order, self.lower_order_final), len(state.values) + 1)
        if order == 1:
            sigmas = state.grid.sigmas
            return (1 - sigmas[index + 1] / sigmas[index]) * denoised
        h = _log_steps(state.grid, index, order - 1)
        return self._extrapolated(denoised, state.values, h)

    def _extrapolated(self, d0: Tensor, past: tuple[Tensor, ...], h: list[Tensor]) -> Tensor:
        """Order 2: φ₀ (D₀ + (h/2h₁)(D₀ − D₁)), D extrapolated linearly to the middle of the step."""
        return -torch.expm1(-h[0]) * (d0 + (h[0] / (2 * h[1])) * (d0 - past[0]))


@dataclass(frozen=True)
class DPMpp2M(_Multistep):
    """x' = r x + (1−r) (D₀ + (h/2h₁)(D₀ − D₁)), D₁ the value one step back (Lu et al. 2022, Algorithm 2)."""


@dataclass(frozen=True)
class DPMpp3M(_Multistep):
    """x' = r x + φ₀ D₀ + φ₁ b + c φ₂ a, where D₀ + b s + a s², s = (τ−λ)/h, interpolates D₀ and the two values before.

    c = 1 is the exact integral of that quadratic, and third order. The published code, which diffusers and k-diffusion
    follow, has c = 1/2: it converges at second order, with a small constant (`docs/solvers.md`). It is the default, since its
    numbers are those users know; `exact=True` gives the other.
    """

    exact: bool = False
    order: int = 3

    def _extrapolated(self, d0: Tensor, past: tuple[Tensor, ...], h: list[Tensor]) -> Tensor:
        if len(h) == 2:
            return super()._extrapolated(d0, past, h)
        r0, r1 = h[1] / h[0], h[2] / h[0]
        first, second = (d0 - past[0]) / r0, (past[0] - past[1]) / r1
        curvature = (first - second) / (r0 + r1)
        phi0, phi1, phi2 = phi(h[0])
        weight = 1.0 if self.exact else 0.5
        return phi0 * d0 + phi1 * (first + r0 * curvature) + weight * phi2 * curvature


@dataclass(frozen=True)
class _Singlestep(Solver):
    """A Runge–Kutta method of `order` stages each step, on inner points equally spaced in λ.

    Args:
        tail: orders of the last intervals, as the published method uses them to spend a budget that `order` does not
            divide: order 3 with 5 evaluations is two intervals of orders 3 and 2, so `tail=(2,)`.
    """

    tail: tuple[int, ...] = ()
    order: int = 2

    def __post_init__(self) -> None:
        if any(not 1 <= k <= self.order for k in self.tail):
            raise InputError(f"tail={self.tail}: each order must lie between 1 and {self.order}")

    def init(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Grid:
        """The state is the grid."""
        return Grid.of(sigmas)

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: Grid) -> Step:
        """As many evaluations as the order of this interval."""
        stages = (self._first, self._second, self._third)
        return stages[self._orders(state)[interval.index] - 1](denoiser, x, interval, state)

    def nfe(self, sigmas: Tensor) -> int:
        """The sum of the intervals' orders."""
        return sum(self._orders(Grid.of(sigmas)))

    def _orders(self, grid: Grid) -> list[int]:
        orders = [self.order] * grid.steps
        for i, k in enumerate(reversed(self.tail[-grid.steps :])):
            orders[-1 - i] = k
        if grid.to_zero:
            orders[-1] = 1
        return orders

    def _first(self, denoiser: Denoiser, x: Tensor, interval: Interval, grid: Grid) -> Step:
        denoised = denoiser(x, interval.sigma)
        return Step(ddim(x, denoised, interval.sigma, interval.sigma_next), denoised, grid)

    def _second(self, denoiser: Denoiser, x: Tensor, interval: Interval, grid: Grid) -> Step:
        """Midpoint in λ: x_m = DDIM to √(σσ'), x' = r x + (1−r) D(x_m)."""
        sigma, sigma_next = interval.sigma, interval.sigma_next
        middle = (sigma * sigma_next).sqrt()
        denoised = denoiser(x, sigma)
        at_middle = denoiser(ddim(x, denoised, sigma, middle), middle)
        return Step(ddim(x, at_middle, sigma, sigma_next), denoised, grid)

    def _third(self, denoiser: Denoiser, x: Tensor, interval: Interval, grid: Grid) -> Step:
        """Inner points at h/3 and 2h/3; the slope of D from the second one."""
        sigma, sigma_next = interval.sigma, interval.sigma_next
        h = (sigma / sigma_next).log()
        s1, s2 = (sigma * torch.exp(-h * c) for c in (1 / 3, 2 / 3))
        d0 = denoiser(x, sigma)
        d1 = denoiser(ddim(x, d0, sigma, s1), s1)
        d2 = denoiser(ddim(x, d0, sigma, s2) + 2 * phi(2 * h / 3)[1] * (d1 - d0), s2)
        return Step(ddim(x, d0, sigma, sigma_next) + 1.5 * phi(h)[1] * (d2 - d0), d0, grid)


@dataclass(frozen=True)
class DPMpp2S(_Singlestep):
    """x_m = DDIM(x, √(σσ')), x' = r x + (1−r) D(x_m) (Lu et al. 2022, Algorithm 1 with r₁ = ½)."""


@dataclass(frozen=True)
class DPMpp3S(_Singlestep):
    """x' = r x + φ₀ D₀ + (3/2) φ₁ (D₂ − D₀), D₂ at two thirds of the step in λ (r₁ = ⅓, r₂ = ⅔)."""

    order: int = 3
