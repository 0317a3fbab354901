"""iPNDM (Zhang & Chen 2023): Adams–Bashforth with constant coefficients on the noise prediction, order rising at the start."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers.base import Grid, History, Interval, Solver, Step
from steindiff.solvers.coefficients import combine, noise_of

__all__ = ["IPNDM"]

_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class IPNDM(Solver):
    """x' = x + (σ'−σ) Σ_j c_j ε̂_j, c the Adams–Bashforth coefficients of *equal* steps, whatever the grid.

    On a uniform σ grid the order is `order`. On any other the fixed coefficients extrapolate to the wrong place by a multiple
    of (ratio of successive steps − 1): on smooth grids, where that is O(1/n), the order is 2 at most (`docs/solvers.md`).

    Args:
        order: 1 to 4; 1 is DDIM.

    Raises:
        InputError: order outside 1 to 4.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"iPNDM order={self.order!r}: choose 1 to 4")

    def init(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> History:
        """An empty history."""
        return History(Grid.of(sigmas))

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: History) -> Step:
        """One evaluation."""
        denoised = denoiser(x, interval.sigma)
        eps = noise_of(x, denoised, interval.sigma)
        values = (eps, *state.values)
        mixed = combine(_ADAMS_BASHFORTH[len(values) - 1], values)
        return Step(x + (interval.sigma_next - interval.sigma) * mixed, denoised, state.push(eps, self.order - 1))

    def nfe(self, sigmas: Tensor) -> int:
        """One a step."""
        return len(sigmas) - 1

    def linear(self, interval: Interval, state: History) -> Tensor:
        """1 + c₀ (σ'−σ)/σ."""
        c0 = _ADAMS_BASHFORTH[len(state.values)][0]
        return 1 + c0 * (interval.sigma_next / interval.sigma - 1)
