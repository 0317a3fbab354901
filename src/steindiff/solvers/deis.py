"""DEIS (Zhang & Chen 2023): Adams–Bashforth for the noise prediction, with exactly integrated polynomial extrapolation.

In VE coordinates dy = ε̂ dσ, hence y' = y + ∫_σ^σ' Σ_j ℓ_j(s(τ)) ε̂_j dτ, with ℓ_j the Lagrange basis through the current and
the previous nodes in some variable s(σ). tAB takes the time of the VP schedule (the published best), ρAB takes σ itself, and
"log_sigma" is the variant that diffusers ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.schedules import VPLinear
from steindiff.solvers.base import Grid
from steindiff.solvers.coefficients import lagrange_integrals
from steindiff.solvers.multistep import NoiseMultistep, Row

_VARIABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "vp_time": VPLinear().time,
    "sigma": lambda sigma: sigma,
    "log_sigma": torch.log,
}
"""s(σ)."""


@dataclass(frozen=True)
class DEIS(NoiseMultistep):
    """x' = x + Σ_j w_j ε̂_j, w_j = ∫_σ^σ' ℓ_j(s(τ)) dτ over the last `order` noise predictions.

    Args:
        order: 1 to 4; order k extrapolates with degree k−1, so tAB-r of the DEIS paper is order r+1, and order 1 is DDIM.
        variable: what the polynomial is in: "vp_time" (tAB), "sigma" (ρAB) or "log_sigma".
        lower_order_final: lower the order at the end of short runs.

    Raises:
        InputError: order or variable outside these.
    """

    order: int = 3
    variable: Literal["vp_time", "sigma", "log_sigma"] = "vp_time"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4) or self.variable not in _VARIABLES:
            choices = ", ".join(_VARIABLES)
            raise InputError(f"DEIS order={self.order!r}, variable={self.variable!r}: choose 1 to 4, and one of {choices}")

    def weights(self, grid: Grid, index: int) -> Row:
        """(1, w)."""
        order = grid.order(index, self.order, self.lower_order_final)
        start, end = grid.levels[index : index + 2]
        if order == 1:
            return Row(1.0, (end - start,))
        nodes = grid.levels[index - order + 1 : index + 1][::-1]
        return Row(1.0, lagrange_integrals(nodes, start, end, _VARIABLES[self.variable]))
