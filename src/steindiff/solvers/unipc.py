"""UniPC (Zhao et al. 2023): a unified predictor–corrector, data prediction, corrector on.

With D₀ the value at the current state, D_m those at earlier nodes (the corrector adds the one at λ', r = 1) and
r_m = (λ_m − λ)/h, both halves have the form

    x' = r x + (1−r) D₀ + B Σ_m ρ_m (D_m − D₀)/r_m,        Σ_m ρ_m r_m^(i−1) = φ_i(h)/B,  i = 1, 2, …

which integrates every power of λ up to the number of nodes exactly; φ_i as in `coefficients.phi`. B is h ("bh1") or
1 − e^(−h) ("bh2"); it matters only where a weight is set to one half instead, in the predictor of order 2 and the corrector
of order 1. In the paper's notation hh = −h, and its right-hand side is b_i = i! hh φ_{i+1}(hh)/B(hh), the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import combine, ddim, phi


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-p: predict x_p at σ', evaluate D(x_p, σ') once, correct; the evaluation serves the next step.

    A step returns the *finished* state, corrector included: what is elsewhere done at the start of the next step is done at
    the end of this one, which changes nothing in the numbers and gives a wrapper the whole map T. The last step has no
    corrector, since it would cost an evaluation. n steps cost n evaluations.

    Args:
        order: p = 1, 2 or 3.
        variant: B = h ("bh1") or 1 − e^(−h) ("bh2").
        corrector: False is UniP, the predictor alone.
        lower_order_final: lower the order towards the last step, as published (runs of any length).
        stored: the evaluation a step starts from was made at the predicted state. "keep" uses it as published and at no cost,
            also where a correction has moved the state since; it is then a constant in the step's Jacobian. "refresh"
            evaluates again at the actual state: one more evaluation a step.

    Raises:
        InputError: order or variant outside these.
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    lower_order_final: bool = True
    stored: Literal["keep", "refresh"] = "keep"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InputError(f"UniPC order={self.order!r}: choose 1, 2 or 3")
        if self.variant not in ("bh1", "bh2") or self.stored not in ("keep", "refresh"):
            raise InputError(f"variant={self.variant!r}, stored={self.stored!r}: choose bh1 or bh2, keep or refresh")

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """No values yet. Once there are, the first belongs to the current state if the corrector is on."""
        return ()

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor, ...]) -> Step:
        """Predict, evaluate at the prediction, correct."""
        grid, index = interval.grid, interval.index
        current, past = self._current(denoiser, x, interval, state)
        kept = (current, *past)[: self.order - 1]
        order = min(self._order(grid, index), len(past) + 1)
        base = ddim(x, current, interval.sigma, interval.sigma_next)
        if order == 1 and (interval.last or not self.corrector):
            return Step(base, current, kept)
        rule = _Rule(grid, index, order, self.variant)
        slopes = [(d - current) / r for d, r in zip(past, rule.nodes, strict=False)]
        predicted = base + rule.scale * combine(rule.predictor(), slopes) if slopes[: order - 1] else base
        if interval.last or not self.corrector:
            return Step(predicted, current, kept)
        ahead = denoiser(predicted, interval.sigma_next)
        corrected = base + rule.scale * combine(rule.corrector(), [*slopes, ahead - current])
        return Step(corrected, current, (ahead, *kept))

    def nfe(self, sigmas: Tensor) -> int:
        """n; with "refresh" and the corrector, 2n − 1."""
        n = len(sigmas) - 1
        return 2 * n - 1 if self.corrector and self.stored == "refresh" else n

    def _order(self, grid: Grid, index: int) -> int:
        order = min(self.order, index + 1)
        if self.lower_order_final:
            order = min(order, grid.steps - index)
        return 1 if grid.to_zero and index == grid.steps - 1 else order

    def _current(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """D at the current state, stored or evaluated now, and the values of earlier steps."""
        if not self.corrector or not state:
            return denoiser(x, interval.sigma), state
        stored, *past = state
        return (stored if self.stored == "keep" else denoiser(x, interval.sigma)), tuple(past)


class _Rule:
    """The weights of one step, on the host."""

    def __init__(self, grid: Grid, index: int, order: int, variant: str) -> None:
        *lam, end = (-math.log(level) for level in grid.levels[max(index - order + 1, 0) : index + 2])
        h = end - lam[-1]
        self.order = order
        self.nodes = [(lam[-1 - j] - lam[-1]) / h for j in range(1, order)]
        phi0, *moments = phi(h, order)
        self.scale = h if variant == "bh1" else phi0
        self._matrix = np.vander([*self.nodes, 1.0], increasing=True).T
        self._target = np.array(moments) / self.scale

    def predictor(self) -> list[float]:
        """Weights of the past slopes; one half for order 2, as published."""
        return [0.5] if self.order == 2 else np.linalg.solve(self._matrix[:-1, :-1], self._target[:-1]).tolist()

    def corrector(self) -> list[float]:
        """Weights of the past slopes and of the new one; one half for order 1, as published."""
        return [0.5] if self.order == 1 else np.linalg.solve(self._matrix, self._target).tolist()
