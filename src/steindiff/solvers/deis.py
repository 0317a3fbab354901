"""DEIS and iPNDM (Zhang & Chen 2023): Adams–Bashforth for the noise prediction.

In VE coordinates dy = ε̂ dσ, hence y' = y + ∫_σ^σ' Σ_j ℓ_j(s(τ)) ε̂_j dτ, with ℓ_j the Lagrange basis through the current and
the previous nodes in some variable s(σ). tAB takes the time of the VP schedule (the published best), ρAB takes σ itself, and
"log_sigma" is the variant that diffusers ships. iPNDM has the weights of equal steps in σ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steindiff.errors import require
from steindiff.solvers.base import Grid
from steindiff.solvers.coefficients import Array, kept, lagrange_integrals, vp_time
from steindiff.solvers.multistep import NoiseMultistep, Row, of_residuals

_VARIABLES: dict[str, Callable[[Array], Array]] = {
    "vp_time": vp_time,
    "sigma": lambda sigma: sigma,
    "log_sigma": np.log,
}
"""s(σ)."""

_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class DEIS(NoiseMultistep):
    """x' = x + Σ_j w_j ε̂_j, w_j = ∫_σ^σ' ℓ_j(s(τ)) dτ over the last `order` noise predictions.

    Args:
        order: 1 to 4; order k extrapolates with degree k−1, so tAB-r of the DEIS paper is order r+1, and order 1 is DDIM.
        variable: what the polynomial is in: "vp_time" (tAB), "sigma" (ρAB) or "log_sigma".
        lower_order_final: lower the order at the end of short runs.
    """

    order: int = 3
    variable: Literal["vp_time", "sigma", "log_sigma"] = "vp_time"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3, 4), "choose 1 to 4 for DEIS", order=self.order)
        require(self.variable in _VARIABLES, f"choose one of {', '.join(_VARIABLES)}", variable=self.variable)

    def weights(self, grid: Grid, index: int) -> Row:
        """(1, w)."""
        return self._rows(grid, index)[0]

    def _row(self, grid: Grid, index: int) -> Row:
        return super()._row(grid, index) if self.order == 1 else self._rows(grid, index)[1]

    def _rows(self, grid: Grid, index: int) -> tuple[Row, Row]:
        order = grid.order(index, self.order, self.lower_order_final)
        return _rows(grid.levels[index - order + 1 : index + 2], self.variable)


@kept
def _rows(levels: tuple[float, ...], variable: str) -> tuple[Row, Row]:
    """(1, w) of the step between the last two levels, through the values at all but the last; and the same of residuals."""
    *nodes, start, end = levels
    w = lagrange_integrals([start, *reversed(nodes)], start, end, _VARIABLES[variable]) if nodes else (end - start,)
    return Row(1.0, w), of_residuals(Row(1.0, w), levels[:-1])


@dataclass(frozen=True)
class IPNDM(NoiseMultistep):
    """x' = x + (σ'−σ) Σ_j c_j ε̂_j, c the Adams–Bashforth coefficients of *equal* steps, whatever the grid.

    On a uniform σ grid the order is `order`. On any other the fixed coefficients extrapolate to the wrong place by a multiple
    of (ratio of successive steps − 1): on smooth grids, where that is O(1/n), the order is 2 at most (`docs/solvers.md`).

    Args:
        order: 1 to 4, rising at the start; 1 is DDIM.
    """

    order: int = 4

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3, 4), "choose 1 to 4 for iPNDM", order=self.order)

    def weights(self, grid: Grid, index: int) -> Row:
        """(1, (σ'−σ) c), with as many coefficients as there are values."""
        step = grid.levels[index + 1] - grid.levels[index]
        return Row(1.0, tuple(step * c for c in _ADAMS_BASHFORTH[min(self.order, index + 1) - 1]))
