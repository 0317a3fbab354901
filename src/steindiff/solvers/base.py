"""What a solver is: state in, state out.

A solver integrates the probability-flow ODE dy/dσ = (y − D(y, σ))/σ, in VE coordinates, over one interval at a time.
Because `step` has no side effects, `lambda z: solver.step(D, z, interval, state).x` is a function of z: it can be
differentiated, evaluated twice, wrapped and interleaved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from steindiff.denoisers import Denoiser

__all__ = ["SHORT_RUN", "Grid", "History", "Interval", "Solver", "State", "Step"]

State = Any
"""Whatever a solver carries from step to step; immutable."""

SHORT_RUN = 15
"""Runs of fewer steps than this lower their order at the end (the published setting of DPM-Solver++)."""


class Interval(NamedTuple):
    """Step `index` of the grid goes from `sigma` to `sigma_next`; both 0-dim float64."""

    index: int  # type: ignore[assignment]  # the contract's name; shadows tuple.index
    sigma: Tensor
    sigma_next: Tensor
    last: bool


class Step(NamedTuple):
    """What a step returns: the next state of the ODE, the denoised value it started from, and the solver's state."""

    x: Tensor
    denoised: Tensor
    state: Any


@dataclass(frozen=True)
class Grid:
    """The noise grid of a run, with what must be known of it on the host: its length and whether it ends at σ = 0."""

    sigmas: Tensor
    steps: int
    to_zero: bool

    @classmethod
    def of(cls, sigmas: Tensor) -> Grid:
        """One host read for a whole run: the loop itself then never waits for the device."""
        return cls(sigmas, len(sigmas) - 1, float(sigmas[-1]) == 0)

    def interval(self, index: int) -> Interval:
        """Step `index` of this grid."""
        return Interval(index, self.sigmas[index], self.sigmas[index + 1], index == self.steps - 1)

    def order(self, index: int, order: int, lower_final: bool) -> int:
        """The order a multistep method can have at step `index`: warm-up, the end of a short run, a step to σ = 0."""
        if index == self.steps - 1 and self.to_zero:
            return 1
        tail = self.steps - index if lower_final and self.steps < SHORT_RUN else order
        return max(1, min(order, index + 1, tail))


@dataclass(frozen=True)
class History:
    """State of a multistep solver: its grid and the values of earlier steps, newest first (values[j] is of step i−1−j)."""

    grid: Grid
    values: tuple[Tensor, ...] = ()

    def push(self, value: Tensor, keep: int) -> History:
        """This history with `value` in front, at most `keep` values long."""
        return History(self.grid, (value, *self.values)[:keep])


class Solver(ABC):
    """A frozen dataclass without mutable state: `init` makes the state of a run, `step` advances it."""

    order: int
    """The nominal order: the number in the method's name. `docs/solvers.md` has the orders it reaches."""

    @abstractmethod
    def init(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> State:
        """The state before the first step. sigmas: a validated grid."""

    @abstractmethod
    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: State) -> Step:
        """Advance x from interval.sigma to interval.sigma_next."""

    @abstractmethod
    def nfe(self, sigmas: Tensor) -> int:
        """Network evaluations over this grid."""

    def linear(self, interval: Interval, state: State) -> Tensor:
        """∂T/∂x with every network output held fixed: r = σ'/σ for exponential integrators in data prediction."""
        return interval.sigma_next / interval.sigma

    def seeded(self, seed: int | tuple[int, ...]) -> Solver:
        """This solver with its random probes drawn from `seed` (one int, or one per image); solvers have none."""
        return self
