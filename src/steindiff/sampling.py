"""The one loop: every solver, corrected or not, runs through `steps`.

`steps` is a generator, so a caller may stop, look or time as it likes; `sample` runs it to the end and returns the state, a
trace of every step and what it cost. Nothing in the loop waits for the device: the trace is moved to the host once, at the end.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff import grids
from steindiff.corrections.base import Reason
from steindiff.corrections.corrected import Note
from steindiff.denoisers import Counter, Denoiser, forwards_per_call
from steindiff.divergence import Choice
from steindiff.divergence.products import differentiated, fresh
from steindiff.errors import InputError, NonFiniteError, StateWarning, needs, require
from steindiff.io import processes
from steindiff.noise import fresh_seed
from steindiff.owning import Lender
from steindiff.solvers import Grid, Interval, Setting, Solver, Step, make
from steindiff.trace import Record, Trace


class Event(NamedTuple):
    """One finished step, for observers: tensors on the device, nothing copied."""

    interval: Interval
    x_before: Tensor
    step: Step
    calls: float
    """Network evaluations so far, of the whole batch."""


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
    trace: tuple[Record, ...]
    stats: Stats
    solver: str = ""
    """What ran, in words or as Python would write it."""


class _Watched(Counter):
    """Makes a denoiser pure, counts evaluated images, refuses outputs of another kind, remembers which were not finite."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.lend = Lender()
        self.start(1)

    def start(self, batch: int) -> None:
        """Forget what a probe of the network has done."""
        self.batch, self.step, self.images = batch, 0, 0
        self.flags: list[tuple[int, Tensor, Tensor]] = []

    @property
    def evaluations(self) -> float:
        """Of the whole batch: an estimator may evaluate a part of it."""
        whole, rest = divmod(self.images, self.batch)
        return self.images / self.batch if rest else whole

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        out = self.lend(self.denoiser, x, sigma)
        self.calls += 1
        self.images += len(x)
        if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
            raise _of_another_kind(out, x, f"at step {self.step}, sigma = {float(sigma.max()):g}")
        if out.requires_grad and not torch.is_grad_enabled() and not differentiated(x):
            out = out.detach()  # a network that turns gradients on for itself: its graph would live as long as a history
        # The extremes carry a NaN or an infinity wherever it is, and cost a small part of what a mask of the whole does.
        finite = torch.isfinite(torch.stack((out.detach().amin(), out.detach().amax()))).all()
        # Beside other processes too: one that stopped in the middle of a run would leave them waiting for its moments.
        if not finite.is_cpu or processes.active():
            self.flags.append((self.step, sigma, finite))
        elif not finite:
            raise _non_finite(self.step, sigma)
        return out

    def check(self) -> None:
        """On an accelerator and beside other processes: one transfer, after the loop."""
        if self.flags and not bool(torch.stack([f for _, _, f in self.flags]).all()):
            raise next(_non_finite(i, s) for i, s, f in self.flags if not f)


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


def _non_finite(step: int, sigma: Tensor) -> NonFiniteError:
    return NonFiniteError(
        f"the network's output is NaN or infinite at step {step}, sigma = {float(sigma.max()):g}: check its dtype (float16 "
        "overflows), its input scale, and whether an unbounded correction has driven the state away (gamma_max=1 bounds it)"
    )


def steps(
    solver: Solver | str, denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, generator: Generators = None
) -> Iterator[Event]:
    """Integrate from sigmas[0] to sigmas[-1], yielding after each step. Arguments and errors as `sample`."""
    solver = make(solver)
    _check_denoiser(denoiser)
    sigmas = grids.validate(sigmas)
    _check_state(x, float(sigmas[0]))
    wide = torch.float32 if x.device.type == "mps" else sigmas.dtype
    sigmas = fresh(sigmas.to(x.device, wide)).clone()
    if generator is not None:
        solver = solver.seeded(seeds(generator, len(x)))
    return _run(solver, denoiser if isinstance(denoiser, _Watched) else _Watched(denoiser), fresh(x), sigmas)


def _run(solver: Solver, watched: _Watched, x: Tensor, sigmas: Tensor) -> Iterator[Event]:
    grid = Grid.of(sigmas)
    with torch.no_grad():
        state = solver.init(watched, x, grid)
    watched.start(len(x))
    for i in range(grid.steps):
        watched.step = i
        interval = grid.interval(i)
        with torch.no_grad():
            step = solver.step(watched, x, interval, state)
        yield Event(interval, x, step, watched.evaluations)
        x, state = step.x, step.state
    watched.check()
    if not bool(torch.isfinite(x).all()):  # no network sees the last state
        raise NonFiniteError(
            f"the state is NaN or infinite after step {grid.steps - 1}, sigma = {grid.levels[-1]:g}: an unbounded correction "
            "has driven it away (gamma_max=1 bounds it)"
        )


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
    _check_denoiser(denoiser)
    _check_kind(x)
    solver, sigmas = _planned(make(solver), denoiser, x, sigmas, nfe, setting)
    watched = _Watched(denoiser)
    observers = (on_step,) if callable(on_step) else tuple(on_step or ())
    events = steps(solver, watched, x, sigmas, generator=generator)
    trace = Trace()
    final = x
    for event in _bar(events, len(sigmas) - 1) if progress else events:
        trace.add(event.interval, event.step.note or Note(Reason.PLAIN))
        for observe in observers:
            observe(_copied(event))
        final = event.step.x
    return SampleResult(final, trace.records(), _stats(watched, trace, len(x)), str(solver))


def _planned(
    solver: Solver, denoiser: Denoiser, x: Tensor, sigmas: Tensor | None, nfe: int | None, setting: Setting | None
) -> tuple[Solver, Tensor]:
    """The method and the grid of a run."""
    require((sigmas is None) != (nfe is None), "give exactly one of sigmas and nfe", sigmas=sigmas, nfe=nfe)
    if sigmas is not None:
        return solver, sigmas
    return solver.plan(nfe or 0, setting or Setting.of(denoiser, event=tuple(x.shape[1:])))


def _check_denoiser(denoiser: object) -> None:
    if not callable(denoiser):
        raise InputError(f"the denoiser is {type(denoiser).__name__}: give a function D(x, sigma), such as model.denoiser")


def _check_kind(x: object) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"x is {got}: the state must be float32 or float64 (x.float()); a network's own dtype is the adapter's"
        )
    grids.check_dense("x", x)


def _check_state(x: Tensor, sigma: float) -> None:
    _check_kind(x)
    if x.ndim < 2 or x.shape[0] == 0 or x[0].numel() == 0:
        raise InputError(f"x of shape {tuple(x.shape)}: need a batch of at least one, (B, *event) with B ≥ 1")
    square = float(x.detach().square().mean())
    bad = 0 if math.isfinite(square) else int((~torch.isfinite(x)).sum())
    if bad:
        raise InputError(f"x holds {bad} NaN or infinite values of {x.numel()}: start from a finite state")
    _check_level(square**0.5, sigma, x.numel())


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
    return Stats(nfe, jvps, vjps, (nfe + extra) * forwards_per_call(watched), batch, choice)
