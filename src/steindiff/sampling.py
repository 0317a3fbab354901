"""The one loop: every solver, corrected or not, runs through `steps`.

`steps` is a generator, so a caller may stop, look or time as it likes; `sample` runs it to the end and returns the state, a
trace of every step and what it cost. Nothing in the loop waits for the device: the trace is moved to the host once, at the end.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff import grids
from steindiff.corrections import Moments, Reason
from steindiff.corrections.base import Correction, corrected_state
from steindiff.denoisers import Counter, Denoiser, forwards_per_call
from steindiff.divergence import Choice
from steindiff.divergence.products import fresh
from steindiff.errors import InputError, NonFiniteError, StateWarning
from steindiff.io import processes
from steindiff.noise import fresh_seed
from steindiff.solvers import Grid, Interval, Solver, Step, make

__all__ = ["Event", "Observer", "Record", "SampleResult", "Stats", "sample", "steps"]


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
class Record:
    """One step of the trace; plain numbers. Without a correction γ = 1, reason "plain", no moments, and noise_ratio NaN."""

    index: int
    sigma: float
    sigma_next: float
    gamma: float
    gamma_raw: float
    reason: str
    moments: dict[str, float]
    noise_ratio: float
    """σ̂/σ, σ̂² = E‖x−D‖²/E[∇·(x−D)] the noise level the batch really has, read off the step's residual; exact for a
    first-order step, 1 on the ideal marginal. NaN where no network derivative was taken or its estimate is not positive."""
    eta: tuple[float, ...] = ()
    """η per band, of `rules.Energy`; gamma is then their mean over dimensions."""


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


class _Watched(Counter):
    """Counts evaluated images, refuses outputs of the wrong shape or dtype, and remembers where an output was not finite."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.start(1)

    def start(self, batch: int) -> None:
        """Nothing has happened yet, to a batch of this size."""
        self.batch, self.step, self.images = batch, 0, 0
        self.flags: list[tuple[int, Tensor, Tensor]] = []

    @property
    def evaluations(self) -> float:
        """Of the whole batch: an estimator may evaluate a part of it."""
        whole, rest = divmod(self.images, self.batch)
        return self.images / self.batch if rest else whole

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        out = super().__call__(x, sigma)
        self.images += len(x)
        if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype:
            got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"the denoiser returned {got} for {tuple(x.shape)} {x.dtype} at step {self.step}, sigma = {_level(sigma):g}: "
                "shape and dtype must stay unchanged"
            )
        # The extremes carry a NaN or an infinity wherever it is, and cost a small part of what a mask of the whole does.
        finite = torch.isfinite(torch.stack((out.detach().amin(), out.detach().amax()))).all()
        # Beside other processes too: one that stopped in the middle of a run would leave them waiting for its moments.
        if not finite.is_cpu or processes.active():
            self.flags.append((self.step, sigma, finite))
        elif not finite:
            raise _non_finite(self.step, _level(sigma))
        return out

    def check(self) -> None:
        """On an accelerator and beside other processes: one transfer, after the loop."""
        if self.flags and not bool(torch.stack([f for _, _, f in self.flags]).all()):
            step, sigma = next((i, _level(s)) for i, s, f in self.flags if not f)
            raise _non_finite(step, sigma)


def _level(sigma: Tensor) -> float:
    return float(sigma.max())


def _non_finite(step: int, sigma: float) -> NonFiniteError:
    return NonFiniteError(
        f"the network's output is NaN or infinite at step {step}, sigma = {sigma:g}: check its dtype (float16 overflows), its "
        "input scale, and whether an unbounded correction has driven the state away (gamma_max=1 bounds it)"
    )


def steps(
    solver: Solver | str, denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, generator: Generators = None
) -> Iterator[Event]:
    """Integrate from sigmas[0] to sigmas[-1], yielding after each step. Arguments and errors as `sample`."""
    solver = make(solver)
    sigmas = grids.validate(sigmas)
    _check_state(x, float(sigmas[0]))
    sigmas = fresh(sigmas.to(x.device))
    if generator is not None:
        solver = solver.seeded(_seeds(generator, len(x)))
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
    _check_end(x, grid)


def sample(
    solver: Solver | str,
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: Generators = None,
    on_step: Observer | Iterable[Observer] | None = None,
    progress: bool = False,
) -> SampleResult:
    """Integrate the probability-flow ODE from σ₀ to σₙ.

    Args:
        solver: a Solver or its name.
        denoiser: D(x, sigma), in VE coordinates.
        x: (B, *event), the noisy state at sigmas[0] in VE coordinates (σ₀ ε to start from noise); float32 or float64.
        sigmas: (n+1,) strictly decreasing noise levels; the last may be 0.
        generator: source of the probes' seeds, one generator or one per image; None: a fixed seed. The state is not random.
        on_step: observers of every step; they get copies of the states, and cannot change what happens.
        progress: show a tqdm bar on stderr.

    Raises:
        InputError: x, sigmas or the denoiser's output malformed; an unknown solver.
        NonFiniteError: the network's output or the last state is not finite; names the step and σ.
    """
    watched = _Watched(denoiser)
    observers = (on_step,) if callable(on_step) else tuple(on_step or ())
    events = steps(solver, watched, x, sigmas, generator=generator)
    kept: list[tuple[Interval, Correction | None]] = []
    choice, final = None, x
    for event in _bar(events, len(sigmas) - 1) if progress else events:
        state = corrected_state(event.step.state)
        kept.append((event.interval, state.last if state else None))
        choice = state.choice if state else None
        for observe in observers:
            observe(_copied(event))
        final = event.step.x
    return SampleResult(final, _trace(kept), _stats(watched, [c for _, c in kept if c], choice, len(x)))


def _check_state(x: Tensor, sigma: float) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"x is {got}: the state must be float32 or float64 (x.float()); a network's own dtype is the adapter's"
        )
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


def _check_end(x: Tensor, grid: Grid) -> None:
    """No network sees the last state."""
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            f"the state is NaN or infinite after step {grid.steps - 1}, sigma = {float(grid.sigmas[-1]):g}: an unbounded "
            "correction has driven it away (gamma_max=1 bounds it)"
        )


def _copied(event: Event) -> Event:
    """An observer that writes into what it is shown must not change the run."""
    step = event.step
    return event._replace(x_before=event.x_before.clone(), step=step._replace(x=step.x.clone(), denoised=step.denoised.clone()))


def _seeds(generator: torch.Generator | Sequence[torch.Generator], batch: int) -> int | tuple[int, ...]:
    if isinstance(generator, torch.Generator):
        return fresh_seed(generator)
    if not isinstance(generator, Sequence) or not all(isinstance(g, torch.Generator) for g in generator):
        raise InputError(f"generator is {type(generator).__name__}: give one torch.Generator, or a list of one per image")
    if len(generator) != batch:
        raise InputError(f"{len(generator)} generators for a batch of {batch}: give one, or one per image")
    return tuple(fresh_seed(g) for g in generator)


def _bar(events: Iterator[Event], total: int) -> Iterable[Event]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise InputError("progress=True needs tqdm: pip install 'steindiff[cli]'") from error
    bar: Iterable[Event] = tqdm(events, total=total, unit="step")
    return bar


def _trace(kept: list[tuple[Interval, Correction | None]]) -> tuple[Record, ...]:
    """Every number of the run in one transfer."""
    rows = [_row(interval, correction) for interval, correction in kept]
    wide = torch.float32 if rows and rows[0][0].device.type == "mps" else torch.float64
    table = torch.stack([torch.stack([z.to(wide) for z in row]) for row in rows]).tolist() if rows else []
    return tuple(_record(i, kept[i], row) for i, row in enumerate(table))


def _row(interval: Interval, correction: Correction | None) -> list[Tensor]:
    sigma, sigma_next = interval.sigma, interval.sigma_next
    if correction is None:
        one, nan = torch.ones_like(sigma), torch.full_like(sigma, float("nan"))
        return [sigma, sigma_next, one, one, torch.zeros_like(sigma), nan, *[nan] * len(Moments._fields)]
    m, d = correction.moments, correction.decision
    return [sigma, sigma_next, d.gamma, d.raw, d.reason, correction.noise_ratio, *m]


def _record(index: int, kept: tuple[Interval, Correction | None], row: list[float]) -> Record:
    sigma, sigma_next, gamma, raw, reason, ratio, *moments = row
    named = dict(zip(Moments._fields, moments, strict=True)) if kept[1] else {}
    eta = () if kept[1] is None or kept[1].eta is None else tuple(kept[1].eta.tolist())
    return Record(index, sigma, sigma_next, gamma, raw, Reason(int(reason)).name.lower(), named, ratio, eta)


def _stats(watched: _Watched, corrections: list[Correction], choice: Choice | None, batch: int) -> Stats:
    jvps, vjps = sum(c.jvps for c in corrections), sum(c.vjps for c in corrections)
    extra = sum(c.share * (c.jvps * choice.cost("jvp") + c.vjps * choice.cost("vjp")) for c in corrections) if choice else 0.0
    nfe = watched.evaluations
    return Stats(nfe, jvps, vjps, (nfe + extra) * forwards_per_call(watched), batch, choice)
