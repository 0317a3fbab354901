"""The one loop: every solver, corrected or not, runs through `steps`.

`steps` is a generator, so a caller may stop, look or time as it likes; `sample` runs it to the end and returns the state, a
trace of every step and what it cost. Nothing in the loop waits for the device: one number is read at the end, and the trace
when somebody asks for it.
"""

import math
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from steindiff import grids
from steindiff.arguments import check_batch, check_denoiser, check_state
from steindiff.corrections.corrected import Corrected
from steindiff.denoisers import Counter, Denoiser, forwards_per_call
from steindiff.divergence import Choice
from steindiff.divergence.products import differentiated, fresh
from steindiff.errors import InputError, NonFiniteError, StateWarning, SteindiffError, needs, require
from steindiff.io.processes import alone
from steindiff.noise import fresh_seed
from steindiff.owning import Lender
from steindiff.solvers import Grid, Interval, Setting, Solver, State, Step, make
from steindiff.trace import Record as Record
from steindiff.trace import Trace


class Event(NamedTuple):
    """One finished step, for observers: tensors on the device, nothing copied."""

    interval: Interval
    x_before: Tensor
    step: Step
    calls: float
    """Network evaluations so far, of the whole batch."""


P = ParamSpec("P")
A = TypeVar("A")
Observer = Callable[[Event], None]
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Stats:
    """What a run cost.

    `nfe` counts every network evaluation, those of an estimator included; `forward_equivalents` adds the derivatives at the
    cost a probe of this network measured, and counts both evaluations of a guided call. In both, an evaluation or a derivative
    of m of the B images counts m/B; a whole nfe is an int.
    """

    nfe: float
    jvps: int
    vjps: int
    forward_equivalents: float
    batch: int
    choice: Choice | None = None
    """What the one-off probe found; its own evaluations are not part of nfe."""


@dataclass(frozen=True)
class SampleResult:
    """The state at the last noise level, (B, *event) in VE coordinates, with its trace and cost."""

    x: Tensor
    recorded: Trace | tuple[Record, ...] = field(repr=False)
    """What `trace` is read from, when somebody first asks for it."""
    stats: Stats
    solver: str = ""
    """What ran, in words or as Python would write it."""

    @cached_property
    def trace(self) -> tuple[Record, ...]:
        """A record of every step."""
        return self.recorded.records() if isinstance(self.recorded, Trace) else self.recorded


class _Watched(Counter):
    """Makes a denoiser pure, counts evaluated images, and refuses outputs of another kind.

    Args:
        looks: whether to refuse a NaN or an infinity too, which waits for the device at each call.
    """

    def __init__(self, inner: Denoiser, looks: bool = False) -> None:
        super().__init__(inner)
        self.lend, self.looks = Lender(), looks
        self.start(1)

    def start(self, batch: int) -> None:
        """Forget what a probe of the network has done."""
        self.batch, self.step, self.images = batch, 0, 0

    @property
    def evaluations(self) -> float:
        """Of the whole batch: an estimator may evaluate a part of it."""
        whole, rest = divmod(self.images, self.batch)
        return self.images / self.batch if rest else whole

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        out, shape = self.lend(self.denoiser, x, sigma), x.shape
        self.calls += 1
        self.images += shape[0]
        if not isinstance(out, Tensor) or out.shape != shape or out.dtype != x.dtype or out.device != x.device:
            raise _of_another_kind(out, x, f"at step {self.step}, sigma = {float(sigma.max()):g}")
        if out.requires_grad and not torch.is_grad_enabled() and not differentiated(x):
            out = out.detach()  # a network that turns gradients on for itself: its graph would live as long as a history
        if self.looks and not _finite(out):
            raise NonFiniteError(
                f"the network's output is NaN or infinite at step {self.step}, sigma = {float(sigma.max()):g}: check its dtype "
                "(float16 overflows), its input scale, and whether an unbounded correction has driven the state away "
                "(gamma_max=1 bounds it)"
            )
        return out


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x.detach()).all())


def _of_another_kind(out: object, x: Tensor, where: str) -> InputError:
    """The error for a denoiser's output that is no tensor like x."""
    got, own, remedy = (
        type(out).__name__,
        f"{tuple(x.shape)} {x.dtype}",
        "; return the denoised tensor alone, such as out.sample",
    )
    if isinstance(out, Tensor):
        got, remedy = f"{tuple(out.shape)} {out.dtype}", "" if out.device == x.device else f", and {x.device}, not {out.device}"
    return InputError(f"the denoiser returned {got} for {own} {where}: shape and dtype must stay unchanged{remedy}")


def steps(
    solver: Solver | str, denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, generator: Generators = None
) -> Iterator[Event]:
    """Integrate from sigmas[0] to sigmas[-1], yielding after each step. Arguments and errors as `sample`."""
    solver = make(solver)
    check_denoiser(denoiser)
    sigmas = grids.validate(sigmas)
    levels = tuple(sigmas.tolist())
    _check_start(x, levels[0])
    wide = torch.float32 if x.device.type == "mps" else sigmas.dtype
    sigmas = sigmas.detach().to(x.device, wide, copy=True)
    if generator is not None:
        solver = solver.seeded(seeds(generator, len(x)))
    grid = Grid.of(sigmas, levels if wide == sigmas.dtype else None)
    return _run(solver, denoiser if isinstance(denoiser, _Watched) else _Watched(denoiser), fresh(x), grid)


def _run(solver: Solver, watched: _Watched, x: Tensor, grid: Grid) -> Iterator[Event]:
    """The steps, whose last state must be finite.

    A NaN or an infinity of any output is in every state after it, so that one look at the last state is enough, and nothing is
    looked at before. Where it is not finite the run is repeated, with a look at each output, to say which was the first.
    """
    end = yield from _advanced(solver, watched, x, grid)
    if not math.isfinite(float(end.sum())) and not _finite(end):
        own = replace(solver, gather=alone) if isinstance(solver, Corrected) else solver  # the other processes have gone on
        deque(_advanced(own, _Watched(watched.denoiser, looks=True), x, grid), maxlen=0)
        driven = "an unbounded correction has driven it away (gamma_max=1 bounds it)"
        strange = f"another run had finite outputs only; check that the network is reproducible, and its scale in {x.dtype}"
        raise NonFiniteError(
            f"the state is NaN or infinite after step {grid.steps - 1}, sigma = {grid.levels[-1]:g}: "
            + (driven if isinstance(solver, Corrected) else strange)
        )


def _advanced(solver: Solver, watched: _Watched, x: Tensor, grid: Grid) -> Generator[Event, None, Tensor]:
    """The steps, and the last state."""
    state = _without_gradients(_started, solver, watched, x, grid)
    for i in range(grid.steps):
        watched.step = i
        interval = grid.interval(i)
        event = Event(interval, x, _without_gradients(solver.step, watched, x, interval, state), watched.evaluations)
        x, state = event.step.x, event.step.state
        yield event
        del event  # two states that the next step's may take the place of
    return x


def _without_gradients(function: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> A:
    """What the function returns under torch.no_grad(), whose making takes as long as a step of a small state."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    with torch.no_grad():
        return function(*args, **kwargs)


def _started(solver: Solver, watched: _Watched, x: Tensor, grid: Grid) -> State:
    """The solver's state before the first step; a network that is not finite is not blamed on its derivative."""
    watched.start(x.shape[0])
    try:
        state = solver.init(watched, x, grid)
    except SteindiffError:
        if watched.images:
            _Watched(watched.denoiser, looks=True)(x, grid.sigmas[0])
        raise
    watched.start(x.shape[0])
    return state


def unrolled(solver: Solver | str, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Callable[[Tensor], Tensor]:
    """The run as a function of its first state alone, x ↦ x_n, for a compiler or a CUDA graph.

        run = torch.compile(unrolled("dpmpp_2m", denoiser, x, sigmas), fullgraph=True)

    It computes what `sample` does with a plain solver or a table. It has no trace, no check of what the network returns, and no
    protection from a network that writes into its input.

    Args:
        solver: a solver without a correction, or its name or spec.
        denoiser: D(x, sigma), in VE coordinates.
        x: a state like those that the function will be given, (B, *event); its numbers do not matter.
        sigmas: as for `sample`.

    Raises:
        InputError: as `sample`, and for a corrected solver.
    """
    solver = make(solver)
    require(not isinstance(solver, Corrected), "need a solver without a correction", solver=str(solver))
    sigmas = grids.validate(sigmas)
    grid = Grid.of(sigmas.to(x.device).clone(), tuple(sigmas.tolist()))

    def run(x: Tensor, state: State, denoiser: Denoiser) -> Tensor:
        for i in range(grid.steps):
            x, _, state, _ = solver.step(denoiser, x, grid.interval(i), state)
        return x

    with torch.no_grad():
        first = solver.init(denoiser, x, grid)
        run(torch.zeros_like(x[:1]), first, lambda z, sigma: torch.zeros_like(z))  # every coefficient is known from here on
    return lambda x: run(x, first, denoiser)


def sample(
    solver: Solver | str,
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor | None = None,
    *,
    nfe: int | None = None,
    setting: Setting | None = None,
    generator: Generators = None,
    on_step: Observer | Iterable[Observer] | None = None,
    progress: bool = False,
) -> SampleResult:
    """Integrate the probability-flow ODE from σ₀ to σₙ.

    Example:
        >>> from steindiff.analytic import Gaussian
        >>> law = Gaussian(torch.zeros(2), 0.25 * torch.eye(2))
        >>> sample("auto", law, 80 * torch.ones(1, 2), nfe=4).solver
        'universal table of 4 evaluations'

    Args:
        solver: a solver, or its name or spec; "auto" takes the best known choice for `nfe` evaluations.
        denoiser: D(x, sigma), in VE coordinates.
        x: the noisy state at sigmas[0] in VE coordinates, (B, *event), float32 or float64; σ₀ ε starts from noise.
        sigmas: strictly decreasing noise levels, (n+1,); the last may be 0. None: `nfe` decides, and the grid is the solver's
            own, or EDM's.
        nfe: the network evaluations to spend; give either this or `sigmas`.
        setting: the noise levels, σ_data and guidance to plan for. None: EDM's levels, and what the denoiser says.
        generator: seeds the probes of a divergence estimator and the fresh noise of a stochastic solver, and nothing else: the
            first noise is x. One generator, or one per image; None is a fixed seed.
        on_step: observers of every step; they get copies of the states and cannot change what happens.
        progress: whether to show a tqdm bar on stderr.

    Raises:
        InputError: x, sigmas or the denoiser's output is malformed; the solver is unknown; both or neither of sigmas and nfe
            are given.
        NonFiniteError: the network's output or the last state is not finite; the error names the step and σ.
    """
    check_denoiser(denoiser)
    check_state(x)
    solver, sigmas = _planned(make(solver), denoiser, x, sigmas, nfe, setting)
    watched = _Watched(denoiser)
    observers = (on_step,) if callable(on_step) else () if on_step is None else tuple(on_step)
    require(all(map(callable, observers)), "need a function of an Event, or several", on_step=on_step)
    events = steps(solver, watched, x, sigmas, generator=generator)
    trace = Trace()
    final = x
    for event in _bar(events, len(sigmas) - 1) if progress else events:
        trace.add(event.interval, event.step.note)
        for observe in observers:
            observe(_copied(event))
        final = event.step.x
        del event
    return SampleResult(final, trace, _stats(watched, trace, x.shape[0]), str(solver))


def _planned(
    solver: Solver, denoiser: Denoiser, x: Tensor, sigmas: Tensor | None, nfe: int | None, setting: Setting | None
) -> tuple[Solver, Tensor]:
    """The method and the grid of a run."""
    require((sigmas is None) != (nfe is None), "give exactly one of sigmas and nfe", sigmas=sigmas, nfe=nfe)
    if sigmas is not None:
        return solver, sigmas
    fits = setting is None or isinstance(setting, Setting)
    require(fits, "need a solvers.Setting, or None", setting=setting)
    setting = Setting.of(denoiser, event=tuple(x.shape[1:])) if setting is None else setting
    return solver.plan(0 if nfe is None else nfe, setting)


def _check_start(x: Tensor, sigma: float) -> None:
    check_batch(x)
    norm = float(torch.linalg.vector_norm(x.detach()))
    bad = 0 if math.isfinite(norm) else int((~torch.isfinite(x)).sum())
    if bad:
        raise InputError(f"x holds {bad} NaN or infinite values of {x.numel()}: start from a finite state")
    _check_level(norm / math.sqrt(x.numel()), sigma, x.numel())


def _check_level(rms: float, sigma: float, n: int) -> None:
    """Warn where n numbers of this root mean square are no x* + σ ε: a state made for another noise level.

    RMS² ≥ σ² (1 − 2√(20.7/n)) but for a probability of 1e-9 (Laurent & Massart 2000); half of σ is left to states that are
    less noisy on purpose. Above, 4 σ is beyond any data of standard deviation below 11.
    """
    small = rms**2 < sigma**2 * min(0.25, 1 - 2 * math.sqrt(20.7 / n))
    if small or (sigma >= 3 and rms > 4 * sigma):
        warnings.warn(
            f"the state's root mean square is {rms:.3g} where the grid starts at sigma = {sigma:.3g}: scale the noise to it, "
            "as initial_noise(..., sigma_max=float(sigmas[0])) does, or start the grid at the state's own noise level",
            StateWarning,
            stacklevel=5,
        )


def _copied(event: Event) -> Event:
    """An observer that writes into what it is shown must not change the run."""
    step = event.step
    return event._replace(x_before=event.x_before.clone(), step=step._replace(x=step.x.clone(), denoised=step.denoised.clone()))


def seeds(generator: torch.Generator | Sequence[torch.Generator], batch: int) -> int | tuple[int, ...]:
    """The seed of a run, or one for each image; each generator moves on. Raises InputError for another number of them."""
    if isinstance(generator, torch.Generator):
        return fresh_seed(generator)
    if not isinstance(generator, Sequence) or not all(isinstance(g, torch.Generator) for g in generator):
        raise InputError(f"generator is {type(generator).__name__}: give one torch.Generator, or a list of one per image")
    if len(generator) != batch:
        raise InputError(f"{len(generator)} generators for a batch of {batch}: give one, or one per image")
    return tuple(fresh_seed(g) for g in generator)


def _bar(events: Iterator[Event], total: int) -> Iterable[Event]:
    with needs("cli", "progress=True"):
        from tqdm.auto import tqdm

    bar: Iterable[Event] = tqdm(events, total=total, unit="step")
    return bar


def _stats(watched: _Watched, trace: Trace, batch: int) -> Stats:
    spent, choice = trace.spent, trace.choice
    jvps, vjps = sum(s.jvps for s in spent), sum(s.vjps for s in spent)
    extra = sum(s.share * (s.jvps * choice.cost("jvp") + s.vjps * choice.cost("vjp")) for s in spent) if choice else 0.0
    nfe = watched.evaluations
    return Stats(nfe, jvps, vjps, (nfe + extra) * forwards_per_call(watched.denoiser), batch, choice)
