"""The steps of a solver along its own trajectory: how much each stretches the worst, a random and the actual error.

A step with its state frozen is a map T_k of the noisy state. With x̄_k the exact flow from the same noise, Φ_k,

    x_{k+1} − x̄_{k+1} = [T_k(x_k) − T_k(x̄_k)] + [T_k(x̄_k) − Φ_k(x̄_k)],

propagated error and new error; the first bracket over ‖x_k − x̄_k‖ is the amplification of the actual discrepancy. The
paper's certificate (SteinDiff Sec. 3) for the first-order step, h = α_t/σ_t − α_s/σ_s:

    L_T ≤ σ_t/σ_s + σ_t h L_D,        lost (L_T < 1 no longer implied) once L_D ≥ (σ_s − σ_t)/(α_t σ_s − α_s σ_t).
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff import grids
from steindiff.analytic.integrate import runge_kutta
from steindiff.arguments import check_batch, check_callable, check_denoiser
from steindiff.denoisers import Denoiser
from steindiff.diagnostics.jacobian import Map, linearize, lipschitz, norms, random_directions
from steindiff.divergence import choose
from steindiff.errors import require, require_numbers
from steindiff.solvers import Grid, Interval, Solver, make


def certificate_threshold(sigma: float, sigma_next: float, alpha: float = 1.0, alpha_next: float = 1.0) -> float:
    """(σ_s − σ_t)/(α_t σ_s − α_s σ_t): from this L_D on, the certificate no longer gives L_T < 1. 1 for VE/EDM, ≤ 1/α_t.

    σ_s > σ_t ≥ 0 and α_s ≤ α_t are those of the model's own x = α x* + σ ε; InputError where they are not.
    """
    _check_step(sigma, sigma_next, alpha, alpha_next)
    return (sigma - sigma_next) / (alpha_next * sigma - alpha * sigma_next)


def step_bound(lipschitz: float, sigma: float, sigma_next: float, alpha: float = 1.0, alpha_next: float = 1.0) -> float:
    """σ_t/σ_s + σ_t h L_D, σ_t h = α_t − α_s σ_t/σ_s: the certificate's bound on L_T of a first-order step.

    `lipschitz` is L_D of D as a function of the model's own x. Other arguments and errors as `certificate_threshold`.
    """
    _check_step(sigma, sigma_next, alpha, alpha_next)
    require_numbers(lipschitz=lipschitz)
    return sigma_next / sigma + (alpha_next - alpha * sigma_next / sigma) * lipschitz


def _check_step(sigma: float, sigma_next: float, alpha: float, alpha_next: float) -> None:
    require_numbers(sigma=sigma, sigma_next=sigma_next, alpha=alpha, alpha_next=alpha_next)
    holds, need = (
        0 <= sigma_next < sigma < math.inf and 0 < alpha <= alpha_next,
        "need 0 ≤ sigma_next < sigma, 0 < alpha ≤ alpha_next",
    )
    require(holds, need, sigma=sigma, sigma_next=sigma_next, alpha=alpha, alpha_next=alpha_next)


class StepMap(NamedTuple):
    """The step from the trajectory's x as a function of the state alone: `map(z) = solver.step(D, z, interval, state).x`."""

    interval: Interval
    x: Tensor
    map: Map


def step_maps(solver: Solver, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[StepMap]:
    """The plain solver's steps along its own trajectory from x (B, *event) at sigmas[0], each with its state frozen.

    Frozen means: the history of a multistep solver, and UniPC's evaluation stored at the predicted state, are constants. A
    `Corrected` step that estimates its divergence cannot be differentiated (`FixedGamma` can). Raises InputError for a
    malformed grid `sigmas` (n+1,).
    """
    check_denoiser(denoiser)
    check_batch(x)
    solver, grid, x = make(solver), Grid.of(grids.validate(sigmas).to(x.device)), x.detach()
    with torch.no_grad():
        state = solver.init(denoiser, x, grid)
    for i in range(grid.steps):
        interval = grid.interval(i)

        def step(z: Tensor, interval: Interval = interval, state: object = state) -> Tensor:
            return solver.step(denoiser, z, interval, state).x

        yield StepMap(interval, x, step)
        with torch.no_grad():
            done = solver.step(denoiser, x, interval, state)
        x, state = done.x, done.state


@dataclass(frozen=True)
class StepReport:
    """One step on a batch of trajectories; plain numbers, one per trajectory.

    Attributes:
        lipschitz: ‖∂T/∂x‖₂, converged to the tolerance asked for or not, after so many iterations.
        random: ‖Jv‖/‖v‖ of every random direction and trajectory.
        actual: ‖T(x) − T(x̄)‖/‖x − x̄‖; NaN where x − x̄ is within the error of x̄ (always at the first step).
        discrepancy: ‖x − x̄‖/√d; NaN without a reference.
    """

    index: int
    sigma: float
    sigma_next: float
    lipschitz: list[float]
    converged: list[bool]
    iterations: list[int]
    random: list[float]
    actual: list[float]
    discrepancy: list[float]


def along_trajectory(
    solver: Solver,
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    reference: "Reference | None" = None,
    only: Collection[int] | None = None,
    tol: float = 0.01,
    max_iterations: int = 100,
    directions: int = 8,
    seed: int = 0,
    check: bool = True,
) -> Iterator[StepReport]:
    """A `StepReport` for every step of a run, or for the steps in `only`.

    `reference` is the flow from the same x, at all levels measured; without it there is no actual discrepancy. `check` first
    compares the denoiser's derivative with finite differences, once, at the middle of the grid. The other arguments are those
    of `step_maps`, `lipschitz` and `random_directions`.

    Raises:
        InputError: a level missing from the reference; options out of range.
        SteindiffError: no derivative, or one that finite differences contradict.
    """
    check_batch(x)
    sigmas = grids.validate(sigmas)
    if check:
        _check_derivative(denoiser, x, sigmas)
    for i, (interval, z, T) in enumerate(step_maps(solver, denoiser, x, sigmas)):
        if only is not None and i not in only:
            continue
        J = linearize(T, z)
        top = lipschitz(J, z, tol=tol, max_iterations=max_iterations, seed=seed)
        random = random_directions(J, z, directions, seed=seed).flatten()
        actual = size = torch.full((len(z),), math.nan)
        if reference is not None:
            y, error = reference.at(interval.sigma)
            actual = discrepancy_amplification(T, z, y, floor=error, value=J.value)
            size = norms(z - y) / math.sqrt(z[0].numel())
        found = (t.tolist() for t in (top.value, top.converged, top.iterations, random, actual, size))
        yield StepReport(i, float(interval.sigma), float(interval.sigma_next), *found)


def _check_derivative(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> None:
    """Refuse a network that cuts its graph: it raises nothing, and every step would look like a contraction by r."""
    positive = sigmas[sigmas > 0]
    middle = (positive[0] * positive[-1]).sqrt()
    choose(denoiser, x / positive[0].to(x) * middle.to(x), middle, methods=("vjp",), samples=2, repeats=1)


def discrepancy_amplification(
    f: Map, x: Tensor, reference: Tensor, *, floor: Tensor | float = 0.0, value: Tensor | None = None
) -> Tensor:
    """‖f(x) − f(x̄)‖/‖x − x̄‖ per sample, (B,): what the map does to the error that is really there.

    x̄ is the reference flow at the same noise level and from the same noise, (B, *event) as x; InputError for another shape.
    NaN where ‖x − x̄‖ is not above `floor` (the uncertainty of x̄), or within 100 roundings of ‖x‖. `value` is f(x), if known.
    """
    check_callable(f, "map", "f(x)")
    check_batch(x)
    check_batch(reference)
    require(x.shape == reference.shape, "need the same shape", state=tuple(x.shape), reference=tuple(reference.shape))
    with torch.no_grad():
        size = norms(x - reference)
        gain = norms((f(x) if value is None else value) - f(reference)) / size
    rounding = 100 * torch.finfo(x.dtype).eps * norms(x)
    return torch.where(size > torch.maximum(rounding, torch.as_tensor(floor).to(rounding)), gain, torch.nan)


@dataclass(frozen=True, eq=False)
class Reference:
    """The exact flow from one noise, at decreasing levels (n+1,), float64: states (n+1, B, *event), errors (n+1, B).

    An error is the estimated ‖error‖ of a level and sample: the change when the steps double, which order six overestimates
    at least eightfold on smooth stretches.
    """

    sigmas: Tensor
    states: Tensor
    errors: Tensor

    def at(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """State and error at a level. Raises InputError where the level is not on the grid."""
        gap, i = (self.sigmas / sigma.to(self.sigmas) - 1).abs().min(0)
        require(bool(gap <= 1e-9), "not on the reference's grid: pass all levels to reference_flow", sigma=float(sigma))
        return self.states[i], self.errors[i]


def reference_flow(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, max_step: float = 0.2) -> Reference:
    """dy/d log σ = y − D(y, σ) from sigmas[0], by Runge–Kutta steps of order six, ≤ max_step in log σ between levels.

    The reference is the flow of this denoiser, exact or not, from x (B, *event) at sigmas[0]. Its error is the distance to a
    solution with steps up to twice as long. InputError: levels that do not decrease to one above 0, or max_step ≤ 0.
    """
    check_denoiser(denoiser)
    check_batch(x)
    require_numbers(max_step=max_step)
    levels = grids.validate(sigmas).tolist()
    require(levels[-1] > 0 and max_step > 0, "need both positive", last_sigma=levels[-1], max_step=max_step)
    logs = [math.log(s) for s in levels]

    def velocity(y: Tensor, sigma: float) -> Tensor:
        return y - denoiser(y, torch.tensor(sigma, dtype=torch.float64, device=y.device))

    with torch.no_grad():
        fine = _flow(velocity, x, logs, max_step)
        errors = torch.zeros(len(levels), len(x), dtype=x.dtype, device=x.device)
        # The coarse solution skips levels closer than its step: in between, the larger estimate holds.
        kept = [0]
        for i, level in enumerate(logs):
            if logs[kept[-1]] - level >= 2 * max_step or 0 < i == len(logs) - 1:
                kept.append(i)
        coarse = _flow(velocity, x, [logs[i] for i in kept], 2 * max_step)
        gaps = [norms(y - fine[i]) for i, y in zip(kept, coarse, strict=True)]
        for j, (a, b) in enumerate(pairwise(kept)):
            errors[a : b + 1] = torch.maximum(gaps[j], gaps[j + 1])
    return Reference(torch.tensor(levels, dtype=torch.float64), torch.stack(fine), errors)


def _flow(velocity: Callable[[Tensor, float], Tensor], y: Tensor, logs: list[float], max_step: float) -> list[Tensor]:
    states = [y]
    for a, b in pairwise(logs):
        states.append(runge_kutta(velocity, states[-1], a, b, max(1, math.ceil((a - b) / max_step))))
    return states
