"""DDIM, the first-order exponential integrator (Song, Meng & Ermon 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.solvers.base import Interval, Solver, State, Step
from steindiff.solvers.coefficients import ddim

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Solver):
    """x' = r x + (1−r) D(x, σ), r = σ'/σ. In VE coordinates also Euler's method in σ. One evaluation a step."""

    order: int = 1

    def init(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> State:
        """No state."""
        return None

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: State) -> Step:
        """One evaluation."""
        denoised = denoiser(x, interval.sigma)
        return Step(ddim(x, denoised, interval.sigma, interval.sigma_next), denoised, None)

    def nfe(self, sigmas: Tensor) -> int:
        """One a step."""
        return len(sigmas) - 1
