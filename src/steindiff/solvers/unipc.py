"""UniPC (Zhao et al. 2023): a unified predictor–corrector, data prediction, corrector on.

With D₀ the value at the current state, D_m those at earlier nodes (the corrector adds the one at λ', r = 1) and
r_m = (λ_m − λ)/h, both halves have the form

    x' = r x + (1−r) D₀ + B Σ_m ρ_m (D_m − D₀)/r_m,        Σ_m ρ_m r_m^(i−1) = φ_i(h)/B,  i = 1, 2, …

which integrates every power of λ up to the number of nodes exactly; φ_i as in `coefficients.phi`. B is h ("bh1") or
1 − e^(−h) ("bh2"); it matters only where a weight is set to one half instead, in the predictor of order 2 and the corrector
of order 1. In the paper's notation hh = −h, and its right-hand side is b_i = i! hh φ_{i+1}(hh)/B(hh), the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import InputError
from steindiff.solvers.base import Grid, History, Interval, Solver, Step
from steindiff.solvers.coefficients import combine, ddim, phi

__all__ = ["UniPC"]


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

    def init(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> History:
        """An empty history; its first value, once there is one, belongs to the current state."""
        return History(Grid.of(sigmas))

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: History) -> Step:
        """Predict, evaluate at the prediction, correct."""
        grid, index = state.grid, interval.index
        current, past = self._current(denoiser, x, interval, state)
        order = min(self._order(grid, index), len(past) + 1)
        base = ddim(x, current, interval.sigma, interval.sigma_next)
        if order == 1 and (interval.last or not self.corrector):
            return Step(base, current, self._next(grid, (), current, past))
        rule = _Rule(grid, index, order, self.variant)
        slopes = [(d - current) / r for d, r in zip(past, rule.nodes, strict=False)]
        predicted = base + rule.scale * combine(rule.predictor(), slopes) if slopes[: order - 1] else base
        if interval.last or not self.corrector:
            return Step(predicted, current, self._next(grid, (), current, past))
        ahead = denoiser(predicted, interval.sigma_next)
        corrected = base + rule.scale * combine(rule.corrector(), [*slopes, ahead - current])
        return Step(corrected, current, self._next(grid, (ahead,), current, past))

    def nfe(self, sigmas: Tensor) -> int:
        """n; with "refresh" and the corrector, 2n − 1."""
        n = len(sigmas) - 1
        return 2 * n - 1 if self.corrector and self.stored == "refresh" else n

    def _order(self, grid: Grid, index: int) -> int:
        order = min(self.order, index + 1)
        if self.lower_order_final:
            order = min(order, grid.steps - index)
        return 1 if grid.to_zero and index == grid.steps - 1 else order

    def _current(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: History) -> tuple[Tensor, tuple[Tensor, ...]]:
        """D at the current state, stored or evaluated now, and the values of earlier steps."""
        if not self.corrector or not state.values:
            return denoiser(x, interval.sigma), state.values
        stored, *past = state.values
        return (stored if self.stored == "keep" else denoiser(x, interval.sigma)), tuple(past)

    def _next(self, grid: Grid, ahead: tuple[Tensor, ...], current: Tensor, past: tuple[Tensor, ...]) -> History:
        return History(grid, (*ahead, *(current, *past)[: self.order - 1]))


class _Rule:
    """The weights of one step, 0-dim float64."""

    def __init__(self, grid: Grid, index: int, order: int, variant: str) -> None:
        lam = -grid.sigmas[max(index - order + 1, 0) : index + 2].log()
        h = lam[-1] - lam[-2]
        self.order = order
        self.nodes = [(lam[-2 - j] - lam[-2]) / h for j in range(1, order)]
        phi0, *moments = phi(h, order)
        self.scale = h if variant == "bh1" else phi0
        self._matrix = torch.stack([torch.stack([*self.nodes, torch.ones_like(h)]) ** i for i in range(order)])
        self._target = torch.stack(moments) / self.scale

    def predictor(self) -> list[Tensor]:
        """Weights of the past slopes; one half for order 2, as published."""
        if self.order == 2:
            return [torch.full_like(self.scale, 0.5)]
        return list(_solve(self._matrix[:-1, :-1], self._target[:-1]))

    def corrector(self) -> list[Tensor]:
        """Weights of the past slopes and of the new one; one half for order 1, as published."""
        if self.order == 1:
            return [torch.full_like(self.scale, 0.5)]
        return list(_solve(self._matrix, self._target))


def _solve(matrix: Tensor, target: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve_ex(matrix, target)[0]
    return solution
