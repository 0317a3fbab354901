"""A published method on a universal table's levels, after the same free step: what a table's grid alone is worth.

    x_1 = a x_0,        then the method's own steps over σ_1 > … > σ_n

Levels and a are those of `universal` for the same evaluations and setting, and the data's mean is zero there too. Whatever a
table then does better is done by its weights, and by the noise levels that it tells the network.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.solvers.base import USUAL, Grid, Interval, Setting, Solver, State, Step
from steindiff.solvers.coefficients import times
from steindiff.solvers.dpmpp import DPMpp2M
from steindiff.solvers.tabulated import TOLERANCE
from steindiff.solvers.universal import OnTables


@dataclass(frozen=True)
class Free(OnTables):
    """A method of one evaluation a step after the free step of the universal table, on that table's levels.

    Args:
        sigma_data: as for `Universal`.
        solver: the method.
    """

    solver: Solver = field(default_factory=DPMpp2M)

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """The method on the levels of the table for this setting. Raises InputError as `Universal`, and for other methods."""
        super().for_nfe(nfe)
        method, steps = self.solver.for_nfe(nfe, setting)
        fits = steps == nfe and not method.plans
        require(fits, "need a method of one evaluation a step that runs on any grid, such as dpmpp_2m", solver=str(self.solver))
        table = self.table(nfe, setting)
        first = table.rows[0]
        require(not first.values, "the table of this number has no free step", nfe=nfe)
        return FreeRun(method, first.a, table.levels), nfe + 1


@dataclass(frozen=True)
class FreeRun(Solver):
    """x_1 = a x_0, then the method over the other levels.

    Args:
        solver: the method.
        a: the weight of the first step.
        levels: σ_0 > … > σ_n, the only grid of its runs.
    """

    plans = True

    solver: Solver
    a: float
    levels: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.solver} after a free step"

    @property
    def order(self) -> int:  # type: ignore[override]
        """The method's."""
        return self.solver.order

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: State) -> Step:
        """The free step, which evaluates nothing and stands for a denoised value of zero, or a step of the method.

        Raises:
            InputError: the grid is not the solver's.
        """
        if interval.index == 0:
            given, own = interval.grid.levels, self.levels
            pairs = zip(given, own, strict=False)
            same = len(given) == len(own) and all(math.isclose(s, t, rel_tol=TOLERANCE) for s, t in pairs)
            require(same, "the free step is for the solver's own grid, solver.own_grid", first=given[:2], own=own[:2])
            return Step(times(self.a, x), x.new_zeros(()).expand_as(x), None)
        inner = _inner(interval)
        if interval.index == 1:
            state = self.solver.init(denoiser, x, inner.grid)
        return self.solver.step(denoiser, x, inner, state)

    def nfe(self, sigmas: Tensor) -> int:
        """The method's on all levels but the first."""
        return self.solver.nfe(sigmas[1:])

    @property
    def own_grid(self) -> Tensor:
        """The levels, float64."""
        return torch.tensor(self.levels, dtype=torch.float64)

    @property
    def event(self) -> tuple[int, ...] | None:
        """The wrapped solver's."""
        return self.solver.event

    def differentiates(self, x: Tensor, grid: Grid) -> bool:
        """As the method does."""
        return self.solver.differentiates(x, grid.since(1))

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> tuple[Solver, int]:
        """This solver and its steps. Raises InputError for another number of evaluations than its own."""
        own = self.nfe(self.own_grid)
        require(nfe == own, f"these levels are for {own} evaluations", nfe=nfe)
        return self, len(self.levels) - 1

    def linear(self, interval: Interval, state: State) -> Tensor:
        """A, or the method's."""
        first = interval.index == 0
        return interval.sigma.new_full((), self.a) if first else self.solver.linear(_inner(interval), state)

    def remembers(self, interval: Interval, state: State) -> bool:
        """As the method does; its run begins after the free step."""
        return interval.index > 1 and self.solver.remembers(_inner(interval), state)

    def first_order(self, x: Tensor, denoised: Tensor, interval: Interval) -> Tensor:
        """As the method rounds it."""
        first = interval.index == 0
        return super().first_order(x, denoised, interval) if first else self.solver.first_order(x, denoised, _inner(interval))

    def seeded(self, seed: int | tuple[int, ...]) -> Solver:
        """The same with the probes of the method, if it has any, from `seed`."""
        return replace(self, solver=self.solver.seeded(seed))


def _inner(interval: Interval) -> Interval:
    """The interval as the method sees it: on a grid without the first level."""
    return Interval(interval.grid.since(1), interval.index - 1)
