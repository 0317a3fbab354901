"""Restart (Xu, Deng, Cheng, Tian, Liu & Jaakkola 2023): a run of an ODE solver that goes back up in noise, several times.

Where the run has come to a level t_min, noise takes it back to t_max, and the solver down again, K times:

    x ← x + √(t_max² − t_min²) ε,      x ← ODE(x, t_max → t_min)                                    (their Algorithm 2)

The fresh noise forgets a part of the errors made so far, and costs new evaluations. In VE coordinates this is one formula for
every schedule. The main run goes on from t_min as a new run, since its history belongs to another image.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from steindiff import grids
from steindiff.denoisers import Counter, Denoiser
from steindiff.errors import InputError, require, unknown_name
from steindiff.noise import initial_noise, mix
from steindiff.solvers.base import USUAL, Grid, Interval, Setting, Solver, State, Step, whole
from steindiff.solvers.coefficients import kept
from steindiff.solvers.singlestep import Heun

_NOISE_TAG = 0x4E57


@dataclass(frozen=True)
class Cycle:
    """One interval of restarts.

    Args:
        low: t_min, from which the run goes back; it is moved to the nearest level of the run's grid.
        high: t_max, to which it goes back.
        times: K, how often.
        steps: how many steps of EDM's grid lead from `high` down again; the paper's N_Restart counts the levels, one more.
    """

    low: float = 0.14
    high: float = 0.30
    times: int = 2
    steps: int = 2

    def __post_init__(self) -> None:
        require(0 < self.low < self.high < math.inf, "need 0 < low < high < inf", low=self.low, high=self.high)
        for name in ("times", "steps"):
            value = getattr(self, name)
            require(whole(value) and value >= 1, "need a whole number, at least 1", **{name: value})


@dataclass(frozen=True)
class Published:
    """A configuration of the paper: its Tables 3 and 5, and the code beside them."""

    cycles: tuple[Cycle, ...]
    inflation: float
    main: int
    """Steps of the main run, the last of them to σ = 0; the run's own grid says it, and this is for who makes one."""


_COARSE, _FINE, _LAST = (19.35, 40.79), (0.59, 1.09), (0.06, 0.30)
_MIDDLE, _LOW = (1.09, 1.92), (0.30, 0.59)


def _cycles(*rows: tuple[tuple[float, float], int, int]) -> tuple[Cycle, ...]:
    return tuple(Cycle(*ends, times, steps) for ends, times, steps in rows)


PUBLISHED: Mapping[str, Published] = {
    "cifar10_edm": Published(_cycles(((0.14, 0.30), 2, 2)), 1.0, 18),
    "cifar10_vp": Published(_cycles((_LAST, 2, 2)), 1.0, 18),
    "imagenet64_39": Published(_cycles((_COARSE, 1, 2), (_MIDDLE, 1, 2), (_LAST, 1, 2)), 1.003, 14),
    "imagenet64_67": Published(_cycles((_COARSE, 1, 4), (_MIDDLE, 1, 4), (_FINE, 1, 4), (_LAST, 1, 4)), 1.003, 18),
    "imagenet64_203": Published(
        _cycles((_COARSE, 1, 3), (_MIDDLE, 1, 3), (_FINE, 5, 3), (_LOW, 5, 3), (_LAST, 6, 5)), 1.003, 36
    ),
}
"""By network and number of evaluations; with Heun's method, CIFAR-10 takes 43."""


@dataclass(frozen=True)
class Restart(Solver):
    """A solver whose run goes back up in noise and down again; stochastic, and of the solver's order.

    Args:
        solver: what runs, plain, and on any grid.
        cycles: where it goes back, how far, how often, and in how many steps it comes down.
        inflation: S_noise, by which the fresh noise is multiplied; 1.003 on ImageNet-64 as published.
        within: what runs inside the cycles; None is `solver`.
        seed: where the fresh noise comes from: one seed for each image, or one from which the place in the batch makes them.
            `sample(..., generator=generators(seeds))` sets one for each image, whose noise is then its own in every batch.
    """

    solver: Solver = field(default_factory=Heun)
    cycles: tuple[Cycle, ...] = (Cycle(),)
    inflation: float = 1.0
    within: Solver | None = None
    seed: int | tuple[int, ...] = 0

    stochastic = True

    def __post_init__(self) -> None:
        for method in (self.solver, self.within or self.solver):
            fits = not method.plans and not method.stochastic
            require(fits, "need a deterministic solver that runs on any grid, such as heun", solver=str(method))
        require(len(self.cycles) > 0, "need at least one cycle", cycles=self.cycles)
        require(0 < self.inflation < math.inf, "need 0 < inflation < inf", inflation=self.inflation)

    def __str__(self) -> str:
        turns = ", ".join(f"{c.times} × {c.low:g} to {c.high:g}" for c in self.cycles)
        return f"{self.solver} restarted {turns}"

    @property
    def order(self) -> int:  # type: ignore[override]  # a wrapper's order is the wrapped solver's
        """The solver's."""
        return self.solver.order

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> State:
        """The solver's. Raises InputError for a grid on which a cycle has no place, before any evaluation."""
        for index in self._places(grid):
            self._turned(grid.interval(index - 1))
        return self.solver.init(denoiser, x, grid)

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: State) -> Step:
        """The solver's step, and all turns of the cycle where one begins at its end.

        Raises:
            InputError: the number of seeds is not that of the images, or the solver is a corrected one.
        """
        inner = self._inner(interval)
        if inner.index == 0 and interval.index > 0:
            state = self.solver.init(denoiser, x, inner.grid)
        step = self.solver.step(denoiser, x, inner, state)
        cycle = self._places(interval.grid).get(interval.index + 1)
        if cycle is None:
            return step
        need = (
            "restart the plain solver and correct the whole, Corrected(restart(...), rule), so that every derivative is billed"
        )
        require(step.note is None, need, solver=str(self.solver))
        low, out = interval.grid.levels[interval.index + 1], step.x
        scale = self.inflation * math.sqrt(cycle.high**2 - low**2)
        for turn in range(cycle.times):
            out = self._down(denoiser, out + self._noise(out, scale, interval.index, turn), self._turned(interval))
        return step._replace(x=out)

    def nfe(self, sigmas: Tensor) -> int:
        """The main run's and that of every turn, counted in a run on one number."""
        counter, grid = Counter(_zero), Grid.of(sigmas.to("cpu", torch.float64))
        x, alone = torch.zeros(1, 1, dtype=torch.float64), replace(self, seed=0)
        state = alone.init(counter, x, grid)
        for i in range(grid.steps):
            x, _, state, _ = alone.step(counter, x, grid.interval(i), state)
        return counter.calls

    @property
    def event(self) -> tuple[int, ...] | None:
        """The wrapped solver's."""
        return self.solver.event

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> "tuple[Restart, int]":
        """The steps that are left to the main run beside the cycles; inside these nothing changes.

        Raises:
            InputError: nothing is left, or no number of steps spends what is; or a cycle has no place on so short an EDM grid.
        """
        super().for_nfe(nfe)
        within = self.within or self.solver
        turns = sum(c.times * within.nfe(grids.karras(c.steps, c.low, c.high)) for c in self.cycles)
        need = f"the cycles alone take {turns} evaluations: spend more, or give the cycles fewer times or steps"
        require(nfe > turns, need, nfe=nfe)
        for left in range(nfe - turns, 0, -1):  # a method that stores its next evaluation loses one at every restart
            solver, steps = self.solver.for_nfe(left, setting)
            made = replace(self, solver=solver, within=within)
            spent = made.nfe(grids.karras(steps, setting.sigma_min, setting.sigma_max))
            if spent <= nfe:
                break
        require(spent == nfe, "no number of steps spends just so many: take one more or one less", nfe=nfe)
        return made, steps

    def linear(self, interval: Interval, state: State) -> Tensor:
        """The product over all steps inside."""
        linear = self.solver.linear(self._inner(interval), state)
        cycle = self._places(interval.grid).get(interval.index + 1)
        if cycle is None:
            return linear
        one = interval.sigma.new_ones(1, 1)
        return linear * self._down(_zero, one, self._turned(interval)).reshape(()) ** cycle.times

    def seeded(self, seed: int | tuple[int, ...]) -> "Restart":
        """The same with fresh noise from `seed`."""
        return replace(self, seed=seed)

    def _places(self, grid: Grid) -> dict[int, Cycle]:
        """By the index of the level that each cycle begins at."""
        return _places(self.cycles, grid.levels)

    def _inner(self, interval: Interval) -> Interval:
        """The interval as the solver sees it: on a grid that begins at the last restart."""
        grid = interval.grid
        begin = max((place for place in self._places(grid) if place <= interval.index), default=0)
        return Interval(grid.since(begin), interval.index - begin)

    def _turned(self, interval: Interval) -> Grid:
        """From `high` to the level where the cycle at the end of this step begins, on the device of the run."""
        cycle = self._places(interval.grid)[interval.index + 1]
        return _turn(cycle.steps, interval.levels[1], cycle.high, interval.sigma.dtype, interval.sigma.device)

    def _down(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> Tensor:
        method = self.within or self.solver
        state = method.init(denoiser, x, grid)
        for i in range(grid.steps):
            x, _, state, _ = method.step(denoiser, x, grid.interval(i), state)
        return x

    def _noise(self, x: Tensor, scale: float, index: int, turn: int) -> Tensor:
        seeds = self.seed if isinstance(self.seed, tuple) else tuple(mix(self.seed, place) for place in range(len(x)))
        if len(seeds) != len(x):
            raise InputError(f"{len(seeds)} seeds for a batch of {len(x)}: give one, or one per image")
        own = [mix(_NOISE_TAG, seed, index, turn) for seed in seeds]
        return initial_noise(own, x.shape[1:], scale, dtype=x.dtype, device=x.device)


def of_spec(
    make: Callable[[Solver | str], Solver],
    solver: Solver | str = "heun",
    published: str = "cifar10_edm",
    low: float | None = None,
    high: float | None = None,
    times: int = 2,
    steps: int = 2,
    inflation: float | None = None,
    within: Solver | str | None = None,
) -> Restart:
    """A published configuration by its name, or one cycle of one's own where `low` and `high` are given; `make` knows solvers.

    Raises:
        InputError: an unknown name, one of `low` and `high` without the other, or as `Restart` and `Cycle`.
    """
    if published not in PUBLISHED:
        raise unknown_name("configuration of restarts", published, PUBLISHED)
    require((low is None) == (high is None), "give low and high, or neither", low=low, high=high)
    known, inside = PUBLISHED[published], None if within is None else make(within)
    cycles, usual = known.cycles, known.inflation
    if low is not None and high is not None:
        cycles, usual = (Cycle(low, high, times, steps),), 1.0
    return Restart(make(solver), cycles, usual if inflation is None else inflation, inside)


@kept
def _places(cycles: tuple[Cycle, ...], levels: tuple[float, ...]) -> dict[int, Cycle]:
    """By the index of the level that each cycle begins at; every step of a run asks for them."""
    found = dict[int, Cycle]()
    for cycle in cycles:
        near = [(abs(level - cycle.low), i) for i, level in enumerate(levels) if i and level > 0]
        require(bool(near), "a restart needs a level above 0 after the first: take more steps", levels=levels)
        _, index = min(near)
        level = levels[index]
        need = f"the nearest level of this grid, {level:g}, is not below high: take more steps, or a higher `high`"
        require(level < cycle.high, need, low=cycle.low, high=cycle.high)
        need = f"two cycles begin at the level {level:g} of this grid: take more steps, or one of them"
        require(index not in found, need, low=cycle.low)
        found[index] = cycle
    return found


@lru_cache(maxsize=256)
def _turn(steps: int, low: float, high: float, dtype: torch.dtype, device: torch.device) -> Grid:
    levels = grids.karras(steps, low, high)
    with torch.inference_mode(False):
        return Grid.of(levels.to(device, dtype), tuple(levels.tolist()))


def _zero(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.zeros_like(x)
