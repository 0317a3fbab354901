"""Both sides of every statement of docs/theory.md on exact models: what the moments predict, what the known x* shows.

A `Case` is one step on the true coupling x = α x* + σ ε, whose x* is known. Its `Sample` keeps, per draw, the terms a
statement is made of, in the frame of the blend: u = x − T(x), e = x − x*, w = x − α x*,

    ⟨u,x⟩, ‖u‖², ∇·u (exact),        which a sampler has,
    ⟨u,e⟩, ‖e‖², ⟨u,w⟩,              which need x*.

The first three of one sample predict, the last three of an independent sample measure; standard errors by the delta method.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from steindiff.analytic import ExactModel, Gaussian, GaussianMixture
from steindiff.analytic.integrate import runge_kutta
from steindiff.corrections import Corrected, Correction, FixedGamma
from steindiff.corrections.blend import Moments
from steindiff.corrections.stein import stein_ratio
from steindiff.denoisers import Denoiser, FromEps, Network
from steindiff.divergence import Exact
from steindiff.metrics import Value
from steindiff.schedules import VE, DiscreteBetas, Schedule, VPCosine, VPLinear
from steindiff.solvers import DDIM, DPMpp2M, Grid, Multistep, Step

D64 = torch.float64
DIM = 8


@cache
def law(name: str) -> ExactModel:
    """Of d = 8: "gaussian", spectrum 1/i, D linear; "mixture", four correlated Gaussians, D not linear; "unit", N(0, I).

    Of d = 1: "line", two Gaussians of unequal weight.
    """
    if name == "line":
        places, widths = torch.tensor([[-1.0], [1.0]], dtype=D64), torch.tensor([0.09, 0.04], dtype=D64)
        return GaussianMixture(torch.tensor([0.4, 0.6], dtype=D64), places, widths[:, None, None])
    g = torch.Generator().manual_seed(0)
    if name == "unit":
        return Gaussian(torch.zeros(DIM, dtype=D64), torch.eye(DIM, dtype=D64))
    if name == "gaussian":
        basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=g, dtype=D64)).Q
        covariance = basis @ torch.diag(1 / torch.arange(1, DIM + 1, dtype=D64)) @ basis.mT
        return Gaussian(torch.full((DIM,), 0.3, dtype=D64), (covariance + covariance.mT) / 2)
    means = torch.randn(4, DIM, generator=g, dtype=D64)
    factors = 0.1 * torch.randn(4, DIM, DIM, generator=g, dtype=D64)
    covariances = factors @ factors.mT + 0.02 * torch.eye(DIM, dtype=D64)
    return GaussianMixture(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=D64), means, covariances)


def predicting_noise(denoiser: Denoiser, schedule: Schedule) -> Network:
    """The network ε̂(x, t) = (x − α D(x/α, s))/σ of a denoiser in VE coordinates."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        shape, levels = (-1, *[1] * (x.ndim - 1)), (schedule.alpha(t), schedule.sigma(t), schedule.ratio(t))
        alpha, sigma, s = (z.to(x).reshape(shape) for z in levels)
        return (x - alpha * denoiser(x / alpha, s.flatten())) / sigma

    return network


SCHEDULES: dict[str, Schedule] = {
    "edm": VE(),
    "vp-linear": VPLinear(),
    "vp-cosine": VPCosine(),
    "discrete": DiscreteBetas.scaled_linear(),
}
TIMES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "edm": ((8.0, 3.0, 1.0), (1.0, 0.5, 0.2)),
    "vp-linear": ((0.8, 0.6, 0.4), (0.4, 0.2, 0.1)),
    "vp-cosine": ((0.9, 0.7, 0.5), (0.5, 0.3, 0.15)),
    "discrete": ((850.0, 650.0, 450.0), (450.0, 250.0, 100.0)),
}
"""Before, at and after the step, in each schedule's own time; one step at high noise, one at low."""


@dataclass(frozen=True)
class Case:
    """One step over the true coupling.

    Args:
        law: "gaussian" or "mixture".
        schedule: a key of SCHEDULES.
        frame: coordinates of the blend.
        solver: "ddim" or "dpmpp_2m".
        level: which of the schedule's TIMES.
        noise: the noise the state really has, in units of the one the step assumes; 1 is the coupling.
        shape: of the noise: Gaussian, or a skewed law of two points with the same mean and variance.
        history: of 2M, the denoised value at: "independent", a state with other noise on the same x*; "flow", the state's
            own past on the exact flow; "frozen", the same, but constant in the derivative (`CleanTarget.history`).
        fixed: one x* for all draws: the conditional law.
    """

    law: str = "mixture"
    schedule: str = "edm"
    frame: Literal["model", "ve"] = "model"
    solver: str = "ddim"
    level: int = 0
    noise: float = 1.0
    shape: Literal["normal", "skewed"] = "normal"
    history: Literal["independent", "flow", "frozen"] = "independent"
    fixed: bool = False

    @property
    def sigmas(self) -> Tensor:
        """The VE noise levels before, at and after the step."""
        return SCHEDULES[self.schedule].ratio(torch.tensor(TIMES[self.schedule][self.level], dtype=D64))

    @property
    def alphas(self) -> tuple[Tensor, Tensor]:
        """α at and after the step in the frame of the blend."""
        schedule = SCHEDULES[self.schedule] if self.frame == "model" else VE()
        return schedule.alpha_of(self.sigmas[1]), schedule.alpha_of(self.sigmas[2])

    @property
    def base(self) -> Multistep:
        """The plain solver."""
        return DDIM() if self.solver == "ddim" else DPMpp2M(lower_order_final=False)

    @property
    def denoiser(self) -> Denoiser:
        """The law's exact denoiser itself in VE; elsewhere behind the adapter of a network that predicts ε."""
        model, schedule = law(self.law), SCHEDULES[self.schedule]
        return model if isinstance(schedule, VE) else FromEps(predicting_noise(model, schedule), schedule)

    def __str__(self) -> str:
        return f"{self.law}, {self.schedule}, {self.solver}, {self.frame} frame, step {self.level}"


def cases() -> list[Case]:
    """Every law, schedule, solver and level in the model's frame, and the VP ones in the VE frame too."""
    every = product(("gaussian", "mixture"), SCHEDULES, ("model", "ve"), ("ddim", "dpmpp_2m"), (0, 1))
    return [Case(*settings) for settings in every if settings[1:3] != ("edm", "ve")]  # α = 1: one frame


class Draw(NamedTuple):
    """VE states y = x* + κ s ε with their x*, the step T(y) as a function, and the solver's state before it."""

    case: Case
    clean: Tensor
    y: Tensor
    step: Callable[[Tensor], Tensor]
    history: tuple[Tensor, ...]

    def corrected(self, rule: Correction) -> Step:
        """The step that the package makes of it under `rule`, in the frame of the case, with the exact divergence."""
        case, grid = self.case, Grid.of(self.case.sigmas)
        solver = Corrected(case.base, rule, divergence=Exact(), frame=case.frame)
        with torch.no_grad():
            begun = replace(solver.init(case.denoiser, self.y, grid), inner=self.history)
            return solver.step(case.denoiser, self.y, grid.interval(1), begun)


def draw(case: Case, n: int, seed: int) -> Draw:
    """n independent draws of the coupling of `case`."""
    model, denoiser, (before, sigma, _) = law(case.law), case.denoiser, case.sigmas
    g = torch.Generator().manual_seed(seed)
    clean = model.sample(1 if case.fixed else n, g).expand(n, DIM)
    if case.shape == "normal":
        noise = torch.randn(n, DIM, generator=g, dtype=D64)
    else:
        p = 0.03
        noise = ((torch.rand(n, DIM, generator=g, dtype=D64) < p).double() - p) / math.sqrt(p * (1 - p))
    y = clean + case.noise * sigma * noise
    other = clean + before * torch.randn(n, DIM, generator=g, dtype=D64)

    def past(z: Tensor) -> Tensor:
        return denoiser(other if case.history == "independent" else flow(model, z, sigma, before), before)

    kept = () if case.solver == "ddim" else (past(y),)

    def step(z: Tensor) -> Tensor:
        history = (past(z),) if kept and case.history == "flow" else kept
        return case.base.step(denoiser, z, Grid.of(case.sigmas).interval(1), history).x

    return Draw(case, clean, y, step, kept)


def flow(model: ExactModel, y: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """The probability flow at a fixed number of steps, which autograd differentiates."""
    return runge_kutta(lambda z, sigma: z - model.denoise(z, sigma), y, float(start.log()), float(stop.log()), 12)


class Means(NamedTuple):
    """Means of the terms; those that need x* beside the package's own record."""

    moments: Moments
    ue: Tensor
    ee: Tensor
    uw: Tensor

    @property
    def gamma(self) -> Tensor:
        """γ* by Eq. 11: no x*."""
        return stein_ratio(self.moments)

    @property
    def b(self) -> Tensor:
        """E⟨u,e⟩ by Eq. 11's numerator: no x*."""
        return self.gamma * self.c

    @property
    def c(self) -> Tensor:
        """E‖u‖²."""
        return self.moments.uu

    @property
    def best(self) -> Tensor:
        """E⟨u,e⟩/E‖u‖² with x* known."""
        return self.ue / self.c

    def loss(self, gamma: float | Tensor) -> Tensor:
        """J(γ) = E‖(1−γ)x + γT − x*‖² = E‖e − γu‖², with x* known."""
        return self.ee - 2 * gamma * self.ue + gamma**2 * self.c


class Sample(NamedTuple):
    """Per-draw terms of one case, (n, 6)."""

    case: Case
    columns: Tensor

    def estimate(self, f: Callable[[Means], Tensor]) -> Value:
        """f of the means, with its standard error by the delta method: the spread of ∇f · row."""
        means = self.columns.mean(0).requires_grad_(True)
        value = f(self._means(means))
        (slope,) = torch.autograd.grad(value, means)
        return Value(float(value.detach()), Value.mean_of(self.columns @ slope).se)

    @property
    def means(self) -> Means:
        """The batch means."""
        return self._means(self.columns.mean(0))

    def _means(self, m: Tensor) -> Means:
        (a, a_next), (_, s, s_next) = self.case.alphas, self.case.sigmas
        ux, uu, div, ue, ee, uw = m
        return Means(Moments(a, a * s, a_next, a_next * s_next, ux, uu, div, torch.zeros_like(uu)), ue, ee, uw)


def sample_of(case: Case, n: int, seed: int) -> Sample:
    """⟨u,x⟩, ‖u‖², ∇·u, ⟨u,e⟩, ‖e‖², ⟨u,w⟩ of n fresh draws, in the frame of the blend."""
    drawn, (a, a_next) = draw(case, n, seed), case.alphas

    def residual(y: Tensor) -> tuple[Tensor, Tensor]:
        out = y - drawn.step(y) * a_next / a  # u/α as a function of y = x/α: the same divergence as u of x
        return out, out

    divergence, scaled = Exact()(residual, drawn.y, 0)
    x, u = a * drawn.y, a * scaled
    e, w = x - drawn.clean, x - a * drawn.clean
    ux, uu, ue, ee, uw = ((p * q).sum(1) for p, q in ((u, x), (u, u), (u, e), (e, e), (u, w)))
    return Sample(case, torch.stack([ux, uu, divergence.values[0], ue, ee, uw], 1))


class Comparison(NamedTuple):
    """A statement's two sides on one case; z is their difference in standard errors."""

    predicted: Value
    measured: Value
    z: float


class Statement(NamedTuple):
    """Two sides that are equal, as functions of the means and of a fixed γ̂, which is γ* + 0.3 rounded.

    Args:
        predicted: the side that one sample gives.
        measured: the side that the other sample gives, with x* known.
        paired: both sides are of the second sample, so that the common part of their errors cancels.
    """

    predicted: Callable[[Means, float], Tensor]
    measured: Callable[[Means, float], Tensor]
    paired: bool = False

    def __call__(self, a: Sample, b: Sample) -> Comparison:
        """Both sides on two independent samples of a case."""
        g = round(float(a.means.gamma) + 0.3, 2)
        predicted = (b if self.paired else a).estimate(lambda m: self.predicted(m, g))
        measured = b.estimate(lambda m: self.measured(m, g))
        gap = Value(measured.value - predicted.value, math.hypot(measured.se, predicted.se))
        if self.paired:
            gap = b.estimate(lambda m: self.measured(m, g) - self.predicted(m, g))
        return Comparison(predicted, measured, gap.value / gap.se)


def _vertex(m: Means) -> Tensor:
    low, mid, high = (m.loss(g) for g in (0.0, 1.0, 2.0))
    return 1 + (low - high) / (2 * (low - 2 * mid + high))


stein_identity = Statement(lambda m, _: m.moments.sigma**2 * m.moments.div, lambda m, _: m.uw, paired=True)

STATEMENTS: dict[str, Statement] = {
    "Lemma 4.6": stein_identity,
    "Thm 4.3": Statement(lambda m, _: m.best, lambda m, _: _vertex(m)),
    "Thm 4.4": Statement(lambda m, _: (m.c - m.b) ** 2 / m.c, lambda m, _: m.loss(1.0) - m.loss(m.gamma)),
    "Thm 4.7": Statement(lambda m, _: m.gamma, lambda m, _: m.best, paired=True),
    "Thm 4.8": Statement(lambda m, _: (1 - m.b**2 / (m.c * m.ee)) * m.ee, lambda m, _: m.loss(m.gamma)),
    "Cor. 4.12": Statement(lambda m, g: m.c * (g - m.gamma) ** 2, lambda m, g: m.loss(g) - m.loss(m.gamma)),
}
"""docs/theory.md states each in words."""


class Displacement(NamedTuple):
    """Cor. 4.9: E‖x^Stein − T‖², as (1−γ*)²c predicts it and of the package's own states, and E‖T − x*‖² beside it.

    `share` is the first over the second, which the corollary bounds by 1.
    """

    distance: Comparison
    plain: Value
    margin: Value

    @property
    def share(self) -> float:
        """E‖x^Stein − T‖²/E‖T − x*‖²."""
        return self.distance.measured.value / self.plain.value


def displacement(a: Sample, n: int, seed: int) -> Displacement:
    """Sample `a` gives γ* by Eq. 11; the package takes that step on n other draws, and the states are compared."""
    drawn, (_, a_next) = draw(a.case, n, seed), a.case.alphas
    made = drawn.corrected(FixedGamma((float(a.means.gamma),) * 2)).x
    T = drawn.step(drawn.y)
    moved, plain = (a_next * (made - T)).square().sum(1), (a_next * T - drawn.clean).square().sum(1)
    predicted, measured = a.estimate(lambda m: (1 - m.gamma) ** 2 * m.c), Value.mean_of(moved)
    apart = a.estimate(lambda m: (1 - m.gamma.detach()) ** 2 * m.c)  # both sides have the error of this γ
    z = (measured.value - predicted.value) / math.hypot(measured.se, apart.se)
    return Displacement(Comparison(predicted, measured, z), Value.mean_of(plain), Value.mean_of(plain - moved))


def improvement(a: Sample, b: Sample) -> Iterator[tuple[bool, bool, bool]]:
    """Thm 4.11 per γ̂: |γ̂−γ*| < |1−γ*| by one sample, J(γ̂) < J(1) by the other, and whether both are 4 errors clear.

    The 16 values of (γ̂−γ*)/|1−γ*| are never ±1, where both sides are equal.
    """
    star = float(a.means.gamma)
    for g in (star + torch.linspace(-2, 2, 16, dtype=D64) * abs(1 - star)).tolist():
        predicted = a.estimate(lambda m, g=g: (1 - m.gamma) ** 2 - (g - m.gamma) ** 2)  # type: ignore[misc]
        measured = b.estimate(lambda m, g=g: m.loss(1.0) - m.loss(g))  # type: ignore[misc]
        clear = all(abs(z.value) > 4 * z.se for z in (predicted, measured))
        yield predicted.value > 0, measured.value > 0, clear


def violated(case: Case, n: int, seed: int, **change: object) -> Comparison:
    """Lemma 4.6 on a case with one hypothesis changed."""
    b = sample_of(replace(case, **change), n, seed)  # type: ignore[arg-type]
    return stein_identity(b, b)
