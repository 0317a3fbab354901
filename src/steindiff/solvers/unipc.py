"""UniPC (Zhao et al. 2023): a unified predictor–corrector, data prediction, corrector on.

With D₀ the value at the current state, D_m those at earlier nodes (the corrector adds the one at λ', r = 1) and
r_m = (λ_m − λ)/h, both halves have the form

    x' = r x + (1−r) D₀ + B Σ_m ρ_m (D_m − D₀)/r_m,        Σ_m ρ_m r_m^(i−1) = φ_i(h)/B,  i = 1, 2, …

which integrates every power of λ up to the number of nodes exactly; φ_i as in `coefficients.phi`. B is h ("bh1") or
1 − e^(−h) ("bh2"); it matters only where a weight is set to one half instead, in the predictor of order 2 and the corrector
of order 1. In the paper's notation hh = −h, and its right-hand side is b_i = i! hh φ_{i+1}(hh)/B(hh), the same number.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import ddim, kept, phi
from steindiff.solvers.multistep import Row, weighted

Array = NDArray[np.float64]


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
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    lower_order_final: bool = True
    stored: Literal["keep", "refresh"] = "keep"

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3), "choose 1, 2 or 3 for UniPC", order=self.order)
        require(self.variant in ("bh1", "bh2"), "choose bh1 or bh2", variant=self.variant)
        require(self.stored in ("keep", "refresh"), "choose keep or refresh", stored=self.stored)

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """No values yet. Once there are, the first belongs to the current state if the corrector is on."""
        return ()

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor, ...]) -> Step:
        """Predict, evaluate at the prediction, correct."""
        grid, index = interval.grid, interval.index
        evaluated, past = self._known(state)
        current = state[0] if evaluated and self.stored == "keep" else denoiser(x, interval.sigma)
        kept = (current, *past)[: self.order - 1]
        order = self._order(interval, past)
        if order == 1 and (interval.last or not self.corrector):
            return Step(ddim(x, current, *interval.levels), current, kept)
        predictor, corrector = _rows(grid.levels[max(index - order + 1, 0) : index + 2], order, self.variant)
        values = (current, *past[: order - 1])
        predicted = weighted(predictor, x, values)
        if interval.last or not self.corrector:
            return Step(predicted, current, kept)
        ahead = denoiser(predicted, interval.sigma_next)
        return Step(weighted(corrector, x, (*values, ahead)), current, (ahead, *kept))

    def nfe(self, sigmas: Tensor) -> int:
        """n; with "refresh" and the corrector, 2n − 1."""
        n = len(sigmas) - 1
        return 2 * n - 1 if self.corrector and self.stored == "refresh" else n

    def remembers(self, interval: Interval, state: tuple[Tensor, ...]) -> bool:
        """Whether the step starts from a stored evaluation, or uses values of earlier steps."""
        evaluated, past = self._known(state)
        return (evaluated and self.stored == "keep") or self._order(interval, past) > 1

    def _known(self, state: tuple[Tensor, ...]) -> tuple[bool, tuple[Tensor, ...]]:
        """Whether the first value was evaluated for this step, and the values of earlier steps."""
        evaluated = self.corrector and bool(state)
        return evaluated, state[1:] if evaluated else state

    def _order(self, interval: Interval, past: tuple[Tensor, ...]) -> int:
        """The order of this step, as far as there are values for it."""
        order = interval.grid.order(interval.index, self.order, self.lower_order_final, short=math.inf)
        return min(order, len(past) + 1)


@kept
def _rows(levels: tuple[float, ...], order: int, variant: str) -> tuple[Row, Row]:
    """The rows of the predictor, of (D₀, D₁, …), and of the corrector, with the value at λ' at its end; σ, σ' end `levels`."""
    *lam, end = (-math.log(level) for level in levels)
    h, r = end - lam[-1], levels[-1] / levels[-2]
    nodes = [(lam[-1 - j] - lam[-1]) / h for j in range(1, order)]
    phi0, *moments = phi(h, order)
    scale = h if variant == "bh1" else phi0
    matrix, target = np.vander([*nodes, 1.0], increasing=True).T, np.array(moments) / scale
    rows: list[Row] = []
    for at, rho in ((nodes, _weights(matrix[:-1, :-1], target[:-1])), ([*nodes, 1.0], _weights(matrix, target))):
        slopes = [scale * weight / node for weight, node in zip(rho, at, strict=True)]
        rows.append(Row(r, (1 - r - sum(slopes), *slopes)))
    return rows[0], rows[1]


def _weights(matrix: Array, target: Array) -> list[float]:
    """ρ; a single weight is one half, as published."""
    return [0.5] * len(target) if len(target) < 2 else [float(rho) for rho in np.linalg.solve(matrix, target)]
