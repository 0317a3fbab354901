"""The probability-flow ODE dy/dλ = y − D(y, σ), λ = log σ, by an Adams method or Butcher's, with doubled steps.

In λ the right-hand side is σ² (Σ + σ²)⁻¹ (y − μ) for a Gaussian: bounded and smooth at both ends of [0.002, 80], which
dy/dσ is not. Each row is integrated with n, 2n, 4n, ... equal steps until its own error estimate

    error = Δ · clip(Δ / Δ_before, r, 1),    Δ = RMS over coordinates of y_2n − y_n,

is below the tolerance. The order p would promise 2⁻ᵖ; r = 1/4, and 1/8 for Butcher's method, keep the estimate honest before
that rate sets in. Rows leave as they converge, so a row's result does not depend on its batch-mates.

Towards the data a step of h costs one evaluation. D is extrapolated through the last four, and the step is repeated with the
fifth, at the point that it led to; the linear part is exact:

    y(λ + h) = eʰ y(λ) − ∫₀ʰ eʰ⁻ˢ P(λ + s) ds,    P the polynomial in λ through these D.

The first three steps are of Butcher's method, of order six and seven evaluations. The method needs it too where noise grows,
since eʰ then enlarges what is off in P. On CIFAR-10's mixture (3072 dimensions, σ from 80 to 0.002) 134 evaluations on two
grids end 1.5e-4 from the flow, RMS, and Butcher's 336 on two grids 2.6e-4. An error below 1e-6 on two mixtures of digits and
wines, in float64, took 840 and 540 evaluations, and 1060 and 830 by Butcher's method.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.errors import InputError

Velocity = Callable[[Tensor, float], Tensor]
"""(y (B, d), σ) -> y − D(y, σ)."""

# Butcher (1964): seven stages, order six. Row i holds a_ij; the nodes c_i are the row sums.
STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 3,),
    (0, 2 / 3),
    (1 / 12, 1 / 3, -1 / 12),
    (-1 / 16, 9 / 8, -3 / 16, -3 / 8),
    (0, 9 / 8, -3 / 8, -3 / 4, 1 / 2),
    (9 / 44, -9 / 11, 63 / 44, 18 / 11, 0, -16 / 11),
)
NODES = (0.0, 1 / 3, 2 / 3, 1 / 3, 1 / 2, 1 / 2, 1.0)
FINAL = (11 / 120, 0, 27 / 40, 27 / 40, -4 / 15, -4 / 15, 11 / 120)
STEPS_PER_UNIT = 1.5  # the coarsest grid of Butcher's method, in steps per unit of log σ
ADAMS_STEPS_PER_UNIT = 3.0  # and of the Adams method
EARLIER = (-3.0, -2.0, -1.0, 0.0)  # where D is known before a step, in steps
ROUNDOFF = 1e4  # rounding errors below which an error that no longer halves has reached the dtype's floor


class Flow(NamedTuple):
    """A state carried along the probability flow.

    Attributes:
        x: the state at the final σ, (B, *event).
        error: the estimated RMS error per coordinate over the whole batch, in units of x.
        steps: the largest number of steps any sample took.
        errors: the estimated RMS error of each sample, (B,).
    """

    x: Tensor
    error: float
    steps: int
    errors: Tensor

    @classmethod
    def of(cls, x: Tensor, errors: Tensor, steps: int) -> "Flow":
        """The flow whose batch error is √(mean errors²)."""
        return cls(x, float(errors.square().mean().sqrt()) if len(errors) else 0.0, steps, errors)


def rms(x: Tensor) -> Tensor:
    """√(mean over coordinates of x²), (B,)."""
    return x.square().mean(-1).sqrt()


def combine(y: Tensor, h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """y + h Σ_j w_j k_j, skipping zero weights."""
    for weight, slope in zip(weights, slopes, strict=True):
        y = y if weight == 0 else y.add(slope, alpha=h * weight)
    return y


def runge_kutta(velocity: Velocity, y: Tensor, start: float, stop: float, steps: int) -> Tensor:
    """y carried from λ = start to λ = stop in equal steps of Butcher's method."""
    h = (stop - start) / steps
    for i in range(steps):
        y, _ = _butcher(velocity, y, start, h, i)
    return y


def _butcher(velocity: Velocity, y: Tensor, start: float, h: float, i: int) -> tuple[Tensor, Tensor]:
    """y after step i of h from λ = start, and the slope before it."""
    slopes: list[Tensor] = []
    for node, row in zip(NODES, STAGES, strict=True):
        slopes.append(velocity(combine(y, h, row, slopes), math.exp(start + (i + node) * h)))
    return combine(y, h, FINAL, slopes), slopes[0]


def adams(velocity: Velocity, y: Tensor, start: float, stop: float, steps: int) -> Tensor:
    """y carried from λ = start to λ = stop in equal steps of the Adams method, of order five."""
    h, first, known = (stop - start) / steps, min(len(EARLIER) - 1, steps), list[Tensor]()
    for i in range(first):
        after, slope = _butcher(velocity, y, start, h, i)
        known.append(y - slope)
        y = after
    if steps > first:
        known.append(y - velocity(y, math.exp(start + first * h)))
    predictor, corrector = adams_weights(h, EARLIER), adams_weights(h, (*EARLIER, 1.0))
    for i in range(first, steps):
        grown = math.exp(h) * y
        predicted = combine(grown, -1.0, predictor, known)
        known.append(predicted - velocity(predicted, math.exp(start + (i + 1) * h)))
        y = combine(grown, -1.0, corrector, known)
        known.pop(0)
    return y


def adams_weights(h: float, nodes: tuple[float, ...]) -> tuple[float, ...]:
    """w with Σ_j w_j P(h c_j) = ∫₀ʰ eʰ⁻ˢ P(s) ds for every polynomial P of lower degree than there are nodes c_j.

    The k-th moment, of P = (s/h)ᵏ, is h Σ_m hᵐ k!/(k + m + 1)!, a Beta integral for each power of h.
    """
    powers = torch.arange(len(nodes), dtype=torch.float64)[:, None]
    moments = [h * sum(h**m * math.factorial(k) / math.factorial(k + m + 1) for m in range(40)) for k in range(len(nodes))]
    vandermonde = torch.tensor(nodes, dtype=torch.float64) ** powers
    return tuple(torch.linalg.solve(vandermonde, torch.tensor(moments, dtype=torch.float64)).tolist())


def integrate(
    velocity: Velocity, y: Tensor, sigma_from: float, sigma_to: float, tol: float, max_steps: int
) -> tuple[Tensor, Tensor, int]:
    """y (B, d) at σ_to from y at σ_from, both positive; each row's estimated error, (B,); the finest number of steps.

    A row is given up, with its last estimate, when doubling would exceed `max_steps`; and, with error Δ, when Δ has stopped
    falling within 10⁴ rounding errors of the dtype.

    Raises:
        InputError: max_steps does not allow the two coarsest grids.
    """
    start, stop = math.log(sigma_from), math.log(sigma_to)
    carried, per_unit, least = (adams, ADAMS_STEPS_PER_UNIT, 1 / 4) if stop < start else (runge_kutta, STEPS_PER_UNIT, 1 / 8)
    steps = max(2, math.ceil(per_unit * abs(stop - start)))
    if max_steps < 2 * steps:
        raise InputError(f"max_steps = {max_steps}: an error estimate from here needs at least {2 * steps}")
    coarse = carried(velocity, y, start, stop, steps)
    result, rows = coarse, torch.arange(len(y), device=y.device)
    error = before = torch.full_like(rms(y.detach()), torch.inf)
    floor = ROUNDOFF * torch.finfo(y.dtype).eps
    while len(rows) and 2 * steps <= max_steps:
        steps *= 2
        fine = carried(velocity, y[rows], start, stop, steps)
        delta = rms((fine - coarse).detach())
        estimate = delta * (delta / before[rows]).nan_to_num(0).clamp(least, 1)
        stalled = (delta > before[rows] / 2) & (delta < floor * rms(fine.detach()))
        result = result.index_copy(0, rows, fine)
        error = error.index_copy(0, rows, torch.where(stalled, delta, estimate))
        before = before.index_copy(0, rows, delta)
        open_ = (estimate > tol) & ~stalled
        rows, coarse = rows[open_], fine[open_]
    return result, error, steps
