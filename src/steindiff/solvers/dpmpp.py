"""DPM-Solver++ (Lu et al. 2022), multistep: exponential integrators in data prediction.

With λ = −log σ, h = λ' − λ and r = σ'/σ = e^(−h), the exact solution over a step is

    y(λ') = r y + ∫_λ^λ' e^(τ−λ') D(τ) dτ,      ∫ e^(τ−λ') dτ = 1 − r,

and the methods differ in how they extrapolate D along the step. `phi` has the integrals of e^(τ−λ') ((τ−λ)/h)^k:
φ₀ = 1−r, φ₁ = 1 − φ₀/h, φ₂ = 1 − 2φ₁/h.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from steindiff.solvers.base import Grid
from steindiff.solvers.coefficients import kept, phi
from steindiff.solvers.multistep import Multistep, Row, ddim_row


def _row(grid: Grid, index: int, order: int, exact: bool = False) -> Row:
    """The row of this order."""
    return ddim_row(grid, index) if order == 1 else _high(grid.levels[index - order + 1 : index + 2], exact)


@kept
def _high(levels: tuple[float, ...], exact: bool) -> Row:
    """Order 2 between the last two of three levels, where D is extrapolated linearly to the middle; order 3 of four levels."""
    h = [math.log(s / t) for s, t in pairwise(levels)][::-1]
    r, phi0, c = levels[-1] / levels[-2], -math.expm1(-h[0]), h[0] / (2 * h[1])
    if len(h) == 2:
        return Row(r, (phi0 * (1 + c), -phi0 * c))
    r0, r1 = h[1] / h[0], h[2] / h[0]
    phi0, phi1, phi2 = phi(h[0])
    # With Δ₀ = (D₀−D₁)/r₀ and Δ₁ = (D₁−D₂)/r₁: a = (Δ₀−Δ₁)/(r₀+r₁), b = Δ₀ + r₀ a.
    curvature = (phi1 * r0 + (phi2 if exact else phi2 / 2)) / (r0 + r1)
    of_first, of_second = (phi1 + curvature) / r0, -curvature / r1
    return Row(r, (phi0 + of_first, of_second - of_first, -of_second))


@dataclass(frozen=True)
class DPMpp2M(Multistep):
    """x' = r x + (1−r) (D₀ + (h/2h₁)(D₀ − D₁)), D₁ the value one step back (Lu et al. 2022, Algorithm 2).

    Args:
        lower_order_final: in runs of fewer than 15 steps the last step is of order 1.
    """

    lower_order_final: bool = True
    order = 2

    def weights(self, grid: Grid, index: int) -> Row:
        """First order where there is no earlier value, at the end of a short run, and to σ = 0."""
        return _row(grid, index, grid.order(index, 2, self.lower_order_final))


@dataclass(frozen=True)
class DPMpp3M(Multistep):
    """x' = r x + φ₀ D₀ + φ₁ b + c φ₂ a, where D₀ + b s + a s², s = (τ−λ)/h, interpolates D₀ and the two values before.

    c = 1 is the exact integral of that quadratic, and third order. The published code, which diffusers and k-diffusion
    follow, has c = 1/2: it converges at second order, with a small constant (`docs/solvers.md`). It is the default, since
    users know its numbers; `exact=True` gives c = 1.

    Args:
        lower_order_final: in runs of fewer than 15 steps the last step is of order 1 and the one before it of order 2.
        exact: whether c = 1.
    """

    lower_order_final: bool = True
    exact: bool = False
    order = 3

    def weights(self, grid: Grid, index: int) -> Row:
        """Lower orders where there are fewer earlier values, at the end of a short run, and to σ = 0."""
        return _row(grid, index, grid.order(index, 3, self.lower_order_final), self.exact)
