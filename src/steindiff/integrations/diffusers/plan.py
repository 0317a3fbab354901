"""Which solver a scheduler runs on which levels, and what its network is told when.

A pipeline shows its network the latents as the scheduler has left them, and most pipelines ask for no scaling. So latents here
are always what the network sees: α y at the level that it is told. The first of them is the pipeline's own noise, of deviation
one. A run that begins with a step without an evaluation, x_1 = a x_0, therefore tells its network first the level at which
x_1 has deviation one: α(told) a σ_0 = α(σ_0) σ_0. In a variance-preserving schedule that is the table's own told level to a
percent or less; in a flow it is below it by about 1/σ_1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from steindiff import grids, solvers
from steindiff.corrections import apply
from steindiff.errors import InputError, require
from steindiff.integrations.diffusers import tables
from steindiff.integrations.diffusers.config import FIRST_OF_FLOW, Convention
from steindiff.push import Asked, asked, share_of_noise
from steindiff.schedules import RectifiedFlow, Schedule
from steindiff.solvers import Setting, Solver, Tabulated
from steindiff.solvers.auto import published

_IN_TIME = {"time_uniform": grids.time_uniform, "time_quadratic": grids.time_quadratic}


@dataclass(frozen=True)
class Options:
    """What `SteindiffScheduler.from_config` takes besides a config; see there."""

    solver: str = "auto"
    correction: str | None = None
    table: str | None = None
    guidance_scale: float | None = None
    sigma_data: float | None = None
    grid: str | None = None
    final: Literal["sigma_min", "zero"] = "sigma_min"
    bounded: bool = True
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("solver", "correction", "table", "grid"):
            value = getattr(self, name)
            need = "give a name, a spec or a path as text, so that it can be saved with the pipeline"
            require(isinstance(value, str | None) and (value is not None or name != "solver"), need, **{name: value})
        for name in ("guidance_scale", "sigma_data"):
            value = getattr(self, name)
            is_one = value is None or (type(value) in (int, float) and 0 < value < math.inf)
            require(is_one, "need a positive number, or None", **{name: value})
        need = "a table is a solver: leave solver='auto' with it"
        require(self.table is None or self.solver == "auto", need, table=self.table, solver=self.solver)
        require(self.final in ("sigma_min", "zero"), "choose sigma_min or zero", final=self.final)
        object.__setattr__(self, "ignore", tuple(self.ignore))

    def as_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        usual = asdict(Options())
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v != usual[k]}


@dataclass(frozen=True)
class Shift:
    """How a flow's config moves its levels: by a factor of t/(1−t), and to a last time.

    Attributes:
        factor: the static factor; None where the pipeline gives `mu`.
        linear: whether the factor is mu itself, and not e^mu.
        terminal: t of the last evaluation; None leaves it.
    """

    factor: float | None = 1.0
    linear: bool = False
    terminal: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shift":
        """What a config says."""
        dynamic = bool(config.get("use_dynamic_shifting"))
        factor = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
        linear = config.get("time_shift_type") == "linear"
        return cls(None if dynamic else float(factor or 1.0), linear, config.get("shift_terminal"))

    def levels(self, times: Sequence[float], mu: float | None) -> list[float]:
        """VE levels of times in (0, 1] before the shift; the first is finite. Raises InputError where mu is missing."""
        require(self.factor is not None or mu is not None, "use_dynamic_shifting needs mu, the exponent of the shift", mu=mu)
        factor = self.factor if self.factor is not None else mu if self.linear else math.exp(mu or 0.0)
        inside = len(times) > 0 and all(0 < t <= 1 for t in times)
        require(inside, "the sigmas of a flow are times in (0, 1]", sigmas=list(times))
        moved = [1 - (1 - t) / (1 - t + (factor or 1.0) * t) for t in times]
        if self.terminal:
            stretch = (1 - moved[-1]) / (1 - self.terminal)
            moved = [1 - (1 - t) / stretch for t in moved]
        return [min(t / (1 - t), FIRST_OF_FLOW) if t < 1 else FIRST_OF_FLOW for t in moved]


@dataclass(frozen=True)
class Levels:
    """The levels of a solver that runs on any.

    Attributes:
        grid: the spec of a grid; None is EDM's, or for a flow equal steps in time under its shift.
        final: where a run ends.
        shift: that of the config.
        mu: what the pipeline gives for it.
    """

    convention: Convention
    grid: str | None
    final: str
    shift: Shift
    mu: float | None = None

    def of(self, solver: Solver, nfe: int, setting: Setting) -> Tensor:
        """The levels for so many evaluations. Raises InputError where a run to zero cannot spend them."""
        _, steps = solver.for_nfe(nfe, setting)
        for count in (steps, steps + 1, steps - 1) if self.final == "zero" else (steps,):
            sigmas = self._range(max(count, 1))
            if solver.nfe(sigmas) == nfe:
                return sigmas
        raise InputError(f"{nfe} evaluations: this solver spends another number in a run to zero; leave final='sigma_min'")

    def given(self, values: Sequence[float]) -> Tensor:
        """The levels that somebody gives: a flow's times before its shift, and all others as they are."""
        flow = isinstance(self.convention.schedule, RectifiedFlow)
        return self._ended(self.shift.levels(values, self.mu)) if flow else torch.tensor(values, dtype=torch.float64)

    def at(self, times: Sequence[float]) -> Tensor:
        """The levels at the network's own times."""
        levels = self.convention.schedule.ratio(torch.tensor(times, dtype=torch.float64))
        top = self.convention.sigma_max
        return self._ended([min(level, top) if math.isfinite(level) else top for level in levels.tolist()])

    def _ended(self, levels: Sequence[float]) -> Tensor:
        end = 0.0 if self.final == "zero" else self.convention.sigma_min
        return torch.tensor([*levels, end if end < levels[-1] else 0.0], dtype=torch.float64)

    def _range(self, steps: int) -> Tensor:
        """From the first level to the last one."""
        schedule, ends = self.convention.schedule, (self.convention.sigma_min, self.convention.sigma_max)
        if self.grid is None and isinstance(schedule, RectifiedFlow):
            return self.given([1 - i / steps for i in range(steps)])
        if self.final == "zero" and steps == 1:
            return torch.tensor([ends[1], 0.0], dtype=torch.float64)
        count = steps - (self.final == "zero")
        in_time = _IN_TIME.get(self.grid or "")
        sigmas = in_time(count, *ends, schedule) if in_time else grids.make(self.grid or "karras", count, *ends)
        return grids.with_zero(sigmas) if self.final == "zero" else sigmas


@dataclass(frozen=True, eq=False)
class Plan:
    """A run, before it begins.

    Attributes:
        solver: what runs, without a correction; it makes no condition on the network.
        sigmas: its grid, (n+1,), float64.
        correction: the spec of its correction; None is none.
        evaluations: what it asks, in order.
        told: the levels that the network is told, in order; the first may differ from what the solver asks.
        alphas: α at these levels: latents are α times the point that is evaluated.
        gain: the first latents times this are the state at sigmas[0].
        event: the shape of latents that the solver is for; None is any.
    """

    solver: Solver
    sigmas: Tensor
    correction: str | None
    evaluations: tuple[Asked, ...]
    told: tuple[float, ...]
    alphas: tuple[float, ...]
    gain: float
    event: tuple[int, ...] | None = None

    @classmethod
    def of(cls, solver: Solver, sigmas: Tensor, convention: Convention, correction: str | None) -> "Plan":
        """A run of a solver over its grid."""
        bare = solver.anyway("network", "event", "guidance") if isinstance(solver, Tabulated) else solver
        evaluations, schedule, first = asked(bare, sigmas), convention.schedule, float(sigmas[0])
        from_noise = convention.from_noise and first >= convention.sigma_max * (1 - tables.NEAR)
        gain = first if from_noise else 1 / _alpha(schedule, first)
        told = [point.sigma for point in evaluations]
        seen = share_of_noise(bare, sigmas) * gain
        if abs(_alpha(schedule, told[0]) * seen - 1) > 1e-9:
            told[0] = _level_of(1 / seen, schedule, told[0])
        alphas = tuple(_alpha(schedule, level) for level in told)
        return cls(bare, sigmas, correction, evaluations, tuple(told), alphas, gain, solver.event)

    @property
    def corrected(self) -> Solver:
        """The solver under its correction."""
        return apply(self.correction or "none", self.solver)

    @property
    def end(self) -> float:
        """The last level."""
        return float(self.sigmas[-1])


def for_nfe(options: Options, convention: Convention, nfe: int, levels: Levels, beside: str | None = None) -> Plan:
    """The run of so many evaluations; `auto` takes a table of the folder `beside` that serves it, where there is one.

    Raises InputError where the solver cannot spend them, or there is no such table.
    """
    setting = setting_of(options, convention)
    if options.table is not None:
        solver: Solver = tables.of_file(options.table, nfe, setting)
    else:
        found = tables.serving(beside, nfe, setting) if options.solver == "auto" and beside else None
        solver = found or solvers.make(options.solver).for_nfe(nfe, setting)[0]
    own = solver.own_grid
    return Plan.of(solver, levels.of(solver, nfe, setting) if own is None else own, convention, options.correction)


def on_levels(options: Options, convention: Convention, sigmas: Tensor) -> Plan:
    """The run of a solver on given levels. Raises InputError where it has levels of its own, or the first is not trained."""
    solver = solvers.make(options.solver)
    need = "this solver chooses its own levels: give num_inference_steps alone, or take one for any levels, such as dpmpp_2m"
    plans = options.table is not None or solver.plans
    require(not plans, need, solver=options.table or options.solver)
    within = float(sigmas[0]) <= convention.sigma_max * (1 + tables.NEAR)
    require(within, f"the network was trained up to sigma = {convention.sigma_max:.4g}", first=float(sigmas[0]))
    return Plan.of(solver, grids.validate(sigmas), convention, options.correction)


def after(plan: Plan, begin: int, options: Options, convention: Convention) -> Plan:
    """The rest of a run from evaluation `begin`, which starts from a noised image: the same levels are told, in order.

    A solver of one evaluation a step starts anew there, and one of several with a whole step. For a table, whose rows need what
    the earlier steps have left, a published method takes its place.

    Raises:
        InputError: the evaluation is in the middle of a step.
    """
    rest = plan.told[begin:]
    anew = _grid([*rest, plan.end])
    if plan.solver.plans and anew is not None:
        return Plan.of(published(len(rest), options.guidance_scale or 1.0), anew, convention, options.correction)
    for sigmas in (anew, plan.sigmas[plan.evaluations[begin].step :]):
        if sigmas is not None and _asks(plan.solver, sigmas, rest):
            return Plan.of(plan.solver, sigmas, convention, options.correction)
    starts = ", ".join(str(i) for i, point in enumerate(plan.evaluations) if point.first)
    raise InputError(
        f"{plan.solver} cannot begin at its evaluation {begin}: its steps begin at {starts}; choose a strength that leaves "
        "whole steps, or a solver of one evaluation a step, such as dpmpp_2m"
    )


def setting_of(options: Options, convention: Convention) -> Setting:
    """What a solver with numbers of its own must know."""
    guidance, last = options.guidance_scale, 0.0 if options.final == "zero" else convention.sigma_min
    if guidance is None and options.table is not None:
        guidance = tables.guidance_of(options.table)
    return Setting(convention.sigma_max, last, convention.sigma_data, 1.0 if guidance is None else guidance)


def _grid(levels: Sequence[float]) -> Tensor | None:
    """The levels as a grid, where they decrease."""
    falling = all(a > b for a, b in pairwise(levels))
    return torch.tensor(levels, dtype=torch.float64) if falling else None


def _asks(solver: Solver, sigmas: Tensor, levels: Sequence[float]) -> bool:
    """Whether a run asks for evaluations at these levels, in order."""
    mine = [point.sigma for point in asked(solver, sigmas)]
    return len(mine) == len(levels) and all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(mine, levels, strict=True))


def _alpha(schedule: Schedule, sigma: float) -> float:
    return float(schedule.alpha_of(torch.tensor(sigma, dtype=torch.float64)))


def _level_of(alpha: float, schedule: Schedule, near: float) -> float:
    """The level of this α, by bisection; α falls with the level. Raises InputError where it is far from the nominal one."""
    low, high = near / 2, near * 2
    inside = _alpha(schedule, low) > alpha > _alpha(schedule, high)
    need = f"the first evaluation of this solver is at {near:.4g}, where its state is far from deviation one: check sigma_data"
    require(inside, need, alpha=alpha)
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _alpha(schedule, middle) > alpha else (low, middle)
    return math.sqrt(low * high)
