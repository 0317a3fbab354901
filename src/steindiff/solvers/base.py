"""What a solver is: state in, state out.

A solver integrates the probability-flow ODE dy/dσ = (y − D(y, σ))/σ, in VE coordinates, over one interval at a time.
Because `step` has no side effects, `lambda z: solver.step(D, z, interval, state).x` is a function of z: it can be
differentiated, evaluated twice, wrapped and interleaved.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from steindiff.denoisers import Denoiser, guidance_of, is_conditioned, noise_range_of, sigma_data_of, tables_of, usual_range_of
from steindiff.errors import require, require_numbers
from steindiff.grids import SIGMA_MAX, SIGMA_MIN, karras
from steindiff.identity import network_of
from steindiff.solvers.coefficients import ddim

State = Any
"""What a solver carries from one step to the next. It is never changed in place. A multistep method carries the tuple of
the data predictions or the residuals x − D of earlier steps, newest first; a singlestep method carries None."""

SHORT_RUN = 15
"""Runs of fewer steps than this lower their order at the end (the published setting of DPM-Solver++)."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The noise grid σ_0 > … > σ_n ≥ 0 of one run; make it with `Grid.of`."""

    sigmas: Tensor
    """The levels on the device of the run, (n+1,), float64."""
    levels: tuple[float, ...]
    """The same on the host, read once, so that the loop never waits for the device."""
    nodes: tuple[Tensor, ...] = field(repr=False)
    """`sigmas` taken apart, 0-dim each: a level is one and the same tensor wherever an interval names it."""
    _tails: "dict[int, Grid]" = field(default_factory=dict, init=False, repr=False)
    _told: dict[tuple[float, ...], tuple[Tensor, ...]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, sigmas: Tensor, levels: tuple[float, ...] | None = None) -> "Grid":
        """The grid of these levels; whoever knows them on the host already spares a transfer."""
        return cls(sigmas, tuple(sigmas.tolist()) if levels is None else levels, sigmas.unbind())

    @property
    def steps(self) -> int:
        """The number n of intervals."""
        return len(self.levels) - 1

    @property
    def to_zero(self) -> bool:
        """Whether the last level is σ = 0."""
        return self.levels[-1] == 0

    def interval(self, index: int) -> "Interval":
        """Step `index` of this grid."""
        return Interval(self, index)

    def since(self, index: int) -> "Grid":
        """The grid without its first `index` levels: the same object whenever it is asked for."""
        if index not in self._tails:
            self._tails[index] = Grid(self.sigmas[index:], self.levels[index:], self.nodes[index:])
        return self._tails[index]

    def told(self, shares: tuple[float, ...]) -> tuple[Tensor, ...]:
        """The levels q_i σ_i of the steps, 0-dim each; the node itself where q_i is 1. They are made at once, and kept."""
        if shares not in self._told:
            made = (self.sigmas[:-1] * self.sigmas.new_tensor(shares)).unbind()
            known = zip(shares, self.nodes, made, strict=False)
            self._told[shares] = tuple(node if q == 1 else level for q, node, level in known)
        return self._told[shares]

    def order(self, index: int, order: int, lower_final: bool, short: float = SHORT_RUN) -> int:
        """The order a multistep method can have at step `index`: warm-up, the end of a short run, a step to σ = 0."""
        if index == self.steps - 1 and self.to_zero:
            return 1
        tail = self.steps - index if lower_final and self.steps < short else order
        return max(1, min(order, index + 1, tail))


@dataclass(frozen=True, eq=False)
class Interval:
    """Step `index` of a grid, from `sigma` to `sigma_next`; both are 0-dim float64 on the device of the run."""

    grid: Grid
    index: int

    @property
    def sigma(self) -> Tensor:
        """The level at which the step starts."""
        return self.grid.nodes[self.index]

    @property
    def sigma_next(self) -> Tensor:
        """The level at which the step ends."""
        return self.grid.nodes[self.index + 1]

    @property
    def levels(self) -> tuple[float, float]:
        """Both levels on the host."""
        start, end = self.grid.levels[self.index : self.index + 2]
        return start, end

    @property
    def last(self) -> bool:
        """Whether the run ends with this step."""
        return self.index == self.grid.steps - 1


@dataclass(frozen=True)
class Setting:
    """What a run is about, as far as a solver with numbers of its own needs to know it.

    Args:
        sigma_max: the first noise level.
        sigma_min: the last noise level.
        sigma_data: the standard deviation of the data's coordinates, in units of x.
        guidance: the scale of classifier-free guidance; 1 is none.
        network: the digest of the network, by which a calibrated table is found; None finds none.
        event: the shape of an image; None finds no calibrated table.
        folders: where calibrated tables are looked for first.
        conditioned: whether labels or prompts are bound to the network; None finds tables of either kind.
    """

    sigma_max: float = SIGMA_MAX
    sigma_min: float = SIGMA_MIN
    sigma_data: float = 0.5
    guidance: float = 1.0
    network: str | None = None
    event: tuple[int, ...] | None = None
    folders: tuple[str, ...] = ()
    conditioned: bool | None = None

    def __post_init__(self) -> None:
        require_numbers(sigma_max=self.sigma_max, sigma_min=self.sigma_min, sigma_data=self.sigma_data, guidance=self.guidance)
        ends = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        require(0 <= self.sigma_min < self.sigma_max < math.inf, "need 0 ≤ sigma_min < sigma_max < inf", **ends)
        require(0 < self.sigma_data < math.inf, "need a positive standard deviation", sigma_data=self.sigma_data)

    @classmethod
    def of(
        cls,
        denoiser: Denoiser,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        event: tuple[int, ...] | None = None,
        folders: tuple[str, ...] = (),
    ) -> "Setting":
        """These noise levels and this shape, and what the denoiser says of itself; EDM's σ_data where it says nothing.

        A level that is None is the one that the denoiser states as usual, or else EDM's, or the end of the denoiser's own range
        where EDM's lies outside, as in EDM's sampler.

        Raises:
            InputError: a level lies outside the denoiser's range.
        """
        sigma_max, sigma_min = _ends(denoiser, sigma_max, sigma_min)
        network = None if event is None else network_of(denoiser)
        data = sigma_data_of(denoiser) or cls.sigma_data
        folders = (*folders, *tables_of(denoiser))
        return cls(sigma_max, sigma_min, data, guidance_of(denoiser), network, event, folders, is_conditioned(denoiser))

    def karras(self, steps: int) -> Tensor:
        """EDM's grid between these levels."""
        return karras(steps, self.sigma_min, self.sigma_max)


def _ends(denoiser: Denoiser, highest: float | None, lowest: float | None) -> tuple[float, float]:
    """The first and the last level of a run."""
    low, high = noise_range_of(denoiser)
    last, first = usual_range_of(denoiser) or (max(SIGMA_MIN, low), min(SIGMA_MAX, high))
    ends = (first if highest is None else highest, last if lowest is None else lowest)
    inside = ends[0] <= high * (1 + 1e-6) and (lowest is None or lowest == 0 or lowest >= low * (1 - 1e-6))
    need = f"the network was made for noise levels from {low:g} to {high:g}: leave the levels out, or stay inside"
    require(inside, need, sigma_max=ends[0], sigma_min=ends[1])
    return ends


USUAL = Setting()
"""EDM's range, its data, and no guidance."""


def whole(value: object) -> bool:
    """Whether this is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


class Step(NamedTuple):
    """What a step returns: the next state of the ODE, the denoised value it started from, and the solver's state."""

    x: Tensor
    denoised: Tensor
    state: Any
    note: Any = None
    """What a wrapper wants the trace to hold of this step; None for a plain solver."""


class Solver(ABC):
    """A frozen dataclass without mutable state: `init` makes the state of a run, `step` advances it."""

    order: int
    """The nominal order: the number in the method's name. `docs/solvers.md` has the orders it reaches."""

    plans: ClassVar[bool] = False
    """Whether the grid is the solver's to choose, for each number of evaluations: `plan` gives it, and it takes no other."""

    of_networks: ClassVar[bool] = False
    """Whether there is a method for some networks and numbers of evaluations only, so that the setting decides."""

    stochastic: ClassVar[bool] = False
    """Whether a run draws noise of its own, from `seeded`: its end is then no function of where it starts."""

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> State:
        """The state before the first step of a run over `grid`; None for a method that carries nothing."""
        return None

    @abstractmethod
    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: State) -> Step:
        """Advance x from interval.sigma to interval.sigma_next."""

    @abstractmethod
    def nfe(self, sigmas: Tensor) -> int:
        """Network evaluations over the grid `sigmas`, (n+1,)."""

    @property
    def own_grid(self) -> Tensor | None:
        """The only grid that the method is for, float64; None where it runs on any."""
        return None

    @property
    def event(self) -> tuple[int, ...] | None:
        """A shape of images that the method is for; None where it is for any."""
        return None

    def differentiates(self, x: Tensor, grid: Grid) -> bool:
        """Whether a run from x takes derivatives of the network; a plain solver takes none."""
        return False

    def for_nfe(self, nfe: int, setting: Setting = USUAL) -> "tuple[Solver, int]":
        """The solver and the number of steps that spend `nfe` evaluations on a grid ending above σ = 0.

        A method with one evaluation a step takes `nfe` ≥ 1 steps and stays as it is, whatever the setting. Raises InputError
        for another `nfe`, and where the solver cannot spend it.
        """
        require(whole(nfe) and nfe >= 1, "need a whole number of network evaluations, at least one", nfe=nfe)
        return self, nfe

    def plan(self, nfe: int, setting: Setting = USUAL) -> "tuple[Solver, Tensor]":
        """The method and the noise levels of a run of `nfe` evaluations: its own levels, or EDM's. Errors as `for_nfe`."""
        solver, steps = self.for_nfe(nfe, setting)
        own = solver.own_grid
        return solver, setting.karras(steps) if own is None else own

    def linear(self, interval: Interval, state: State) -> Tensor:
        """∂T/∂x with every network output held fixed: r = σ'/σ for exponential integrators in data prediction."""
        return interval.sigma_next / interval.sigma

    def first_order(self, x: Tensor, denoised: Tensor, interval: Interval) -> Tensor:
        """T₁ = r x + (1−r) D, rounded as this solver rounds: where its own step is of first order, T₁ is that step bitwise."""
        return ddim(x, denoised, *interval.levels)

    def remembers(self, interval: Interval, state: State) -> bool:
        """Whether T(x) depends on x through `state` too, which earlier states on the same trajectory have left.

        A derivative with the state held constant is then a part of the whole one. It is true wherever the state holds a tensor,
        unless a solver knows better.
        """
        return _holds_tensor(state)

    def seeded(self, seed: int | tuple[int, ...]) -> "Solver":
        """This solver with its random numbers drawn from `seed` (one int, or one per image); most solvers have none."""
        return self


def _holds_tensor(tree: Any) -> bool:
    """Whether there is a tensor in a tree of tuples, lists, mappings and dataclasses."""
    if isinstance(tree, Tensor):
        return True
    if is_dataclass(tree) and not isinstance(tree, type):
        tree = [getattr(tree, f.name) for f in fields(tree)]
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (tuple, list)) else ()
    return any(map(_holds_tensor, parts))
