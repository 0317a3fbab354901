"""DPM-Solver-v3 (Zheng, Lu, Chen & Zhu 2023): an exponential integrator whose linear part is measured on the model.

With λ = −log σ and VE states, the flow is dx/dλ = −(x − D) (their Eq. 5 with α = 1). Three statistics of the model, one number
a coordinate at every level, say what is integrated exactly: the linear part l, and the line s f + b that the rest's
derivative follows.

    f = (x − D) − l x,       g = e^(−S) f − β,       L = ∫ l,   S = ∫ s,   β = ∫ e^(−S) b,      all from this step's level on
    x' = e^(−L') [ x − ∫ e^(L+S) (g + β) dλ ],       g ≈ Σ_k g⁽ᵏ⁾ (λ − λ₀)ᵏ/k!

What a run keeps is −f = D − (1 − l) x, which is one pass over the state, as D from it is.

(l, s, b) = (1, 0, 0) is data prediction, hence DPM-Solver++; (0, −1, 0) is noise prediction, hence DPM-Solver. Statistics
are linear between the levels that they are given at; `calibration/peers/dpm_v3.py` measures them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.solvers.base import Grid, Interval, Solver, Step, whole
from steindiff.solvers.coefficients import transformed
from steindiff.solvers.dpm_v3_statistics import Statistics, spread

NODES = 65
"""Points of a quadrature over one step."""

PSEUDO_UP_TO, CORRECTOR_UP_TO = 5, 6
"""The most steps of a run with a pseudo-order predictor, and with a corrector (the published setting for EDM's networks)."""


class _Known(NamedTuple):
    """A value of −f and the index of its level in the grid."""

    rest: Tensor
    place: int


class _State(NamedTuple):
    """−f of the current state, where a corrector has evaluated it, and those of earlier steps, newest first."""

    current: Tensor | None
    past: tuple[_Known, ...]


@dataclass(frozen=True, eq=False)
class DPMSolverV3(Solver):
    """DPM-Solver-v3, multistep, predictor and corrector. n steps cost n evaluations.

    The corrector reuses the evaluation at the predicted state, and keeps its f for the next step. None takes what was published
    for EDM's networks: a pseudo-order predictor up to 5 steps, and a corrector up to 6.

    Args:
        statistics: l, s and b of the model.
        order: of the predictor, 1 to 3; published: 3, and 2 under guidance.
        pseudo: whether the predictor takes divided differences for derivatives.
        corrector: "off", "on" (of the predictor's order), or "pseudo" (of one more, by divided differences; published under
            guidance).
        lower_order_final: whether the order falls to 1 at the end.

    Raises:
        InputError: an order that there is not.
    """

    statistics: Statistics
    order: int = 3
    pseudo: bool | None = None
    corrector: Literal["off", "on", "pseudo"] | None = None
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        require(self.order in (1, 2, 3) and whole(self.order), "choose 1, 2 or 3 for DPM-Solver-v3", order=self.order)
        require(self.corrector in (None, "off", "on", "pseudo"), "choose off, on or pseudo", corrector=self.corrector)

    def __str__(self) -> str:
        """Without the digest of the statistics, which takes longer than a run of a small network."""
        return f"DPM-Solver-v3 of order {self.order}"

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> _State:
        """No values yet. Raises InputError where the statistics are of other events or of a smaller range of levels."""
        event = tuple(self.statistics.linear.shape[1:])
        require(tuple(x.shape[1:]) == event, f"the statistics are of events of shape {event}", event=tuple(x.shape[1:]))
        (top, *_, low), given = self.statistics.levels, (grid.levels[0], grid.levels[-2 if grid.to_zero else -1])
        inside = given[0] <= top * (1 + 1e-6) and given[1] >= low * (1 - 1e-6)
        require(
            inside, f"the statistics are of levels from {top:g} to {low:g}: measure them over the grid's range", levels=given
        )
        if x.device.type != "cpu":  # a run on zeros moves there what the steps need, so that none of them waits for it
            state, still = _State(None, ()), torch.zeros_like(x[:1])
            for i in range(grid.steps):
                state = self.step(lambda z, sigma: torch.zeros_like(z), still, grid.interval(i), state).state
        return _State(None, ())

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: _State) -> Step:
        """Predict; where there is a corrector, evaluate at the prediction and correct."""
        grid, index, n = interval.grid, interval.index, interval.grid.steps
        pseudo = n <= PSEUDO_UP_TO if self.pseudo is None else self.pseudo
        corrector = ("on" if n <= CORRECTOR_UP_TO else "off") if self.corrector is None else self.corrector
        here, denoised = self._here(denoiser, x, interval, state)
        if interval.last and grid.to_zero:
            return Step(denoised, denoised, _State(None, ()))
        known = (_Known(here, index), *state.past)
        order = min(self.order, len(known), n - index if self.lower_order_final else self.order)
        predicted = self._moved(x, grid, index, known[:order], pseudo)
        corrected = order + (corrector == "pseudo")
        if interval.last or corrector == "off" or corrected < 2:
            return Step(predicted, denoised, _State(None, known[:2]))
        ahead = self._linear(denoiser(predicted, interval.sigma_next), predicted, grid, index + 1, -1)
        points = (known[0], _Known(ahead, index + 1), *known[1:])[:corrected]
        better = self._moved(x, grid, index, points, corrector == "pseudo")
        return Step(better, denoised, _State(ahead, known[:2]))

    def nfe(self, sigmas: Tensor) -> int:
        """One evaluation a step."""
        return len(sigmas) - 1

    @property
    def event(self) -> tuple[int, ...]:
        """That of the statistics."""
        return tuple(self.statistics.linear.shape[1:])

    def linear(self, interval: Interval, state: _State) -> Tensor:
        """The mean over coordinates of ∂T/∂x with every network output held fixed."""
        line = torch.stack([torch.zeros_like(self.statistics.linear[0]), torch.ones_like(self.statistics.linear[0])])
        past = tuple(_Known(torch.zeros_like(line), known.place) for known in state.past)
        still = _State(None if state.current is None else torch.zeros_like(line), past)
        ends = self.step(lambda z, sigma: torch.zeros_like(z), line, interval, still).x
        return (ends[1] - ends[0]).mean().to(interval.sigma)

    def _here(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: _State) -> tuple[Tensor, Tensor]:
        """−f and D of the current state: evaluated, or what the last corrector has left."""
        grid, index = interval.grid, interval.index
        if state.current is not None:
            return state.current, self._linear(state.current, x, grid, index, 1)
        denoised = denoiser(x, interval.sigma)
        return self._linear(denoised, x, grid, index, -1), denoised

    def _linear(self, part: Tensor, x: Tensor, grid: Grid, index: int, sign: int) -> Tensor:
        """D − (1 − l) x, which is −f; or −f + (1 − l) x, which is D."""
        rate = _rate_at(self.statistics, grid.levels[index], x.dtype, x.device)
        return torch.addcmul(part, rate, x, value=sign)

    def _moved(self, x: Tensor, grid: Grid, index: int, points: Sequence[_Known], pseudo: bool) -> Tensor:
        """x' from −f at this step's level, the first of the points, and at others."""
        levels = tuple(grid.levels[place] for place in (index + 1, *(point.place for point in points)))
        growth, weights, fixed = _coefficients(self.statistics, levels, pseudo, x.dtype, x.device)
        total = torch.addcmul(fixed, growth, x)
        for point, weight in zip(points, weights, strict=True):
            # in the place of a total that nobody else has
            total = torch.addcmul(total, weight, point.rest) if transformed() else total.addcmul_(weight, point.rest)
        return total


def of_file(path: str, order: int = 3) -> DPMSolverV3:
    """The method with the statistics of a file, for specs: `dpm_v3(file.safetensors, order=2)`. Raises as `Statistics.load`."""
    return DPMSolverV3(Statistics.load(path)[0], order)


@lru_cache(maxsize=256)
def _rate_at(statistics: Statistics, level: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 − l at a level."""
    with torch.inference_mode(False):
        return (1 - statistics.at(torch.tensor([-math.log(level)], dtype=torch.float64))[0][0]).to(device, dtype)


@lru_cache(maxsize=256)
def _coefficients(
    statistics: Statistics, levels: tuple[float, ...], pseudo: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Of x and of −f at each point, and what is added: the levels are σ', σ and those of the other points."""
    with torch.inference_mode(False):
        end, *lams = (-math.log(level) for level in levels)
        here = statistics.integrals(torch.tensor(lams[:1], dtype=torch.float64))
        growth, moments, fixed = _weights(statistics, lams[0], end, here, len(lams))
        derivatives, weights = _taylor([lam - lams[0] for lam in lams], pseudo), list[Tensor]()
        for j, lam in enumerate(lams):
            share, shift = _towards(statistics, lams[0], lam, here)
            weight = torch.stack([m * row[j] for m, row in zip(moments, derivatives, strict=True)]).sum(0)
            weights.append((weight * share).to(device, dtype))
            fixed = fixed - weight * shift
        return growth.to(device, dtype), weights, -fixed.to(device, dtype)


def _weights(
    statistics: Statistics, start: float, end: float, here: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, list[Tensor], Tensor]:
    """e^(−L'), e^(−L') ∫ e^(L+S) (λ−λ₀)ᵏ/k! for k < count, and e^(−L') ∫ e^(L+S) β."""
    lam, h = torch.linspace(start, end, NODES, dtype=torch.float64), (end - start) / (NODES - 1)
    L, S = (part - first for part, first in zip(statistics.integrals(lam), here, strict=True))
    grown = (L + S - L[-1]).exp()
    since = spread(lam - start, L)
    moments = [_cumulative(grown * since**k / math.factorial(k), h)[-1] for k in range(count)]
    beta = _cumulative((-S).exp() * statistics.at(lam)[2], h)
    return (-L[-1]).exp(), moments, _cumulative(grown * beta, h)[-1]


def _towards(statistics: Statistics, start: float, other: float, here: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """e^(−S) and β at another level, so that g = e^(−S) f − β there."""
    if other == start:
        return torch.ones_like(statistics.linear[0]), torch.zeros_like(statistics.linear[0])
    lam, h = torch.linspace(start, other, NODES, dtype=torch.float64), (other - start) / (NODES - 1)
    shrunk = (here[1] - statistics.integrals(lam)[1]).exp()
    return shrunk[-1], _cumulative(shrunk * statistics.at(lam)[2], h)[-1]


def _taylor(offsets: Sequence[float], pseudo: bool) -> list[list[float]]:
    """The derivatives g⁽ᵏ⁾ at the first point as sums over the points, [k][j]; offsets are λ_j − λ_0, the first one 0.

    In full they are those of the polynomial through all points. A pseudo-order takes k! times the divided difference of the
    first k+1 points instead, which leaves the lower derivatives at their lower order.
    """
    n = len(offsets)
    nodes = np.array(offsets)
    if not pseudo:
        powers = np.linalg.inv(np.vander(nodes, increasing=True))
        return [[math.factorial(k) * float(weight) for weight in powers[k]] for k in range(n)]
    rows = list[list[float]]()
    for k in range(n):
        gaps = nodes[: k + 1, None] - nodes[None, : k + 1] + np.eye(k + 1)
        rows.append([math.factorial(k) / float(gap) for gap in gaps.prod(1)] + [0.0] * (n - k - 1))
    return rows


def _cumulative(values: Tensor, h: float) -> Tensor:
    """∫ from the first node to each, of values at equal steps h along dimension 0; exact for cubics."""
    inner = (-values[:-3] + 13 * values[1:-2] + 13 * values[2:-1] - values[3:]) / 24
    first = (9 * values[:1] + 19 * values[1:2] - 5 * values[2:3] + values[3:4]) / 24
    last = (9 * values[-1:] + 19 * values[-2:-1] - 5 * values[-3:-2] + values[-4:-3]) / 24
    return h * torch.cat([torch.zeros_like(first), torch.cat([first, inner, last]).cumsum(0)])
