"""PNDM (Liu, Ren, Lin & Zhao 2022): Adams–Bashforth for the noise prediction, after a pseudo Runge–Kutta start.

A classical method adds up slopes ε̂ and then moves along a straight line. A pseudo method keeps the weights of the slopes, and
moves by DDIM's transfer from one time to another. In VE coordinates that transfer is x' = x + (σ'−σ) ε̂ whatever the schedule,
so that only the times decide what the weights do: they are those of equal steps, and of a stage in the middle, in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.solvers.base import USUAL, Grid, Interval, Setting, Solver, Step
from steindiff.solvers.coefficients import ddim, vp_level, vp_time
from steindiff.solvers.deis import IPNDM
from steindiff.solvers.multistep import Row, weighted


@dataclass(frozen=True)
class PNDM(Solver):
    """F-PNDM, x' = x + (σ'−σ)(ε̂₁ + 2ε̂₂ + 2ε̂₃ + ε̂₄)/6 for three steps, then x' = x + (σ'−σ)(55ε̂₀ − 59ε̂₁ + 37ε̂₂ − 9ε̂₃)/24.

    The stages of the start are ε̂₁ at σ, ε̂₂ and ε̂₃ in the middle, each reached along the stage before, and ε̂₄ at σ'. The
    multistep part takes one evaluation a step, and remembers ε̂₁ of the start. n ≥ 3 steps cost n + 9 evaluations. S-PNDM,
    `order=2`, starts with one step of two evaluations, x' = x + (σ'−σ)(ε̂₁ + ε̂₂)/2, which is Heun's, and goes on with
    (3ε̂₀ − ε̂₁)/2; n steps cost n + 1. A step of the start that ends at σ = 0 is DDIM's.

    Where the steps are equal in time but not in σ, the order is 2, as the paper says (its Theorem 3.2).

    Args:
        order: 4 is F-PNDM, 2 is S-PNDM; the start has order − 1 steps of so many evaluations each.
        middle: what the middle of a step is in: "vp_time", as published, or "sigma", which is the time of EDM's schedule.
    """

    order: int = 4
    middle: Literal["vp_time", "sigma"] = "vp_time"

    def __post_init__(self) -> None:
        require(self.order in (2, 4), "choose 4 (F-PNDM) or 2 (S-PNDM)", order=self.order)
        require(self.middle in ("vp_time", "sigma"), "choose vp_time or sigma", middle=self.middle)

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """No earlier noise predictions."""
        return ()

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor, ...]) -> Step:
        """A step of the start, or iPNDM's of full order. Raises InputError where the state holds too few noise predictions."""
        if not self._starts(interval.index):
            return self._later.step(denoiser, x, interval, state)
        (sigma, end), denoised = interval.levels, denoiser(x, interval.sigma)
        kept = (x - denoised, *state)[: self.order - 1]
        if interval.last and interval.grid.to_zero:
            return Step(ddim(x, denoised, sigma, end), denoised, kept)
        changes: list[Tensor] = []

        def moved(level: float, before: Sequence[float]) -> Tensor:
            """The state at a level, reached along ε̂₁ and a sum of the changes D₁ − D_j."""
            r = level / sigma
            return weighted(Row(r, (1 - r, *((level - sigma) * c for c in before))), x, (denoised, *changes))

        def deviation(before: Sequence[float], level: float, at: Tensor) -> list[float]:
            """ε̂ − ε̂₁ there as weights of the changes: so written, nothing cancels where D hardly changes."""
            changes.append(denoised - denoiser(moved(level, before), at))
            return [*((level - sigma) * c / level for c in before), 1 / level]

        if self.order == 2:
            mean = [c / 2 for c in deviation((), end, interval.sigma_next)]
        else:
            middle = self._middle(sigma, end)
            inside = interval.sigma.new_full((), middle)
            second = deviation((), middle, inside)
            third = deviation(second, middle, inside)
            fourth = deviation(third, end, interval.sigma_next)
            mean = [(2 * a + 2 * b + c) / 6 for a, b, c in zip((*second, 0, 0), (*third, 0), fourth, strict=True)]
        return Step(moved(end, mean), denoised, kept)

    def nfe(self, sigmas: Tensor) -> int:
        """One a step, and `order` for each step of the start that does not end at σ = 0."""
        grid = Grid.of(sigmas)
        started = min(grid.steps, self.order - 1)
        whole = started - (grid.to_zero and started == grid.steps)
        return grid.steps + whole * (self.order - 1)

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> "tuple[PNDM, int]":
        """The steps that remain beside the start. Raises InputError below what the start costs: 12 evaluations, or 2."""
        super().for_nfe(nfe)
        start = self.order - 1
        least = start * self.order
        need = f"the start of PNDM of order {self.order} takes {least} evaluations: spend as many, or take pndm(2) or ipndm_4"
        require(nfe >= least, need, nfe=nfe)
        return self, nfe - least + start

    def linear(self, interval: Interval, state: tuple[Tensor, ...]) -> Tensor:
        """R in the start, where every ε̂ contains x/σ however it was reached; later as iPNDM."""
        first = self._starts(interval.index)
        return super().linear(interval, state) if first else self._later.linear(interval, state)

    def remembers(self, interval: Interval, state: tuple[Tensor, ...]) -> bool:
        """Not in the start; later as iPNDM."""
        return not self._starts(interval.index) and self._later.remembers(interval, state)

    def first_order(self, x: Tensor, denoised: Tensor, interval: Interval) -> Tensor:
        """As iPNDM rounds it after the start."""
        first = self._starts(interval.index)
        return super().first_order(x, denoised, interval) if first else self._later.first_order(x, denoised, interval)

    def _starts(self, index: int) -> bool:
        return index < self.order - 1

    @property
    def _later(self) -> IPNDM:
        return IPNDM(self.order)

    def _middle(self, sigma: float, end: float) -> float:
        """The middle in σ, or in VP's time."""
        return (sigma + end) / 2 if self.middle == "sigma" else vp_level(float(vp_time(np.array([sigma, end])).mean()))
