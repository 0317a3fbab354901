"""iPNDM (Zhang & Chen 2023): Adams–Bashforth with constant coefficients on the noise prediction, order rising at the start."""

from __future__ import annotations

from dataclasses import dataclass

from steindiff.errors import InputError
from steindiff.solvers.base import Grid
from steindiff.solvers.multistep import NoiseMultistep, Row

_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class IPNDM(NoiseMultistep):
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

    def weights(self, grid: Grid, index: int) -> Row:
        """(1, (σ'−σ) c), with as many coefficients as there are values."""
        step = grid.levels[index + 1] - grid.levels[index]
        return Row(1.0, tuple(step * c for c in _ADAMS_BASHFORTH[min(self.order, index + 1) - 1]))
