"""EVODiff (Li, Chen & Zeng 2025), as its authors' public sampler for EDM networks computes it.

A step predicts, evaluates at the prediction, and then weighs two "balanced" differences of denoised values by numbers that it
reads off these values, image by image and channel by channel. With r = σ'/σ, c = 1 − r, D₀ and D₋ the values of this step and
of the one before, and ρ the ratio of the two steps in log σ (the one before over this one):

    e = r x + c D₀                                                           DDIM's state
    Δ = D₀ − b D₋,     b = (1−w) √(r/r₋) + w ⟨D₀, D₋⟩/‖D₋‖²,                 w = (1 − ((σ'+σₙ)/(σ₀+σₙ))²)/2
    p = e + c Δ/(2 q), q = ρ sigmoid(|b|/4),          D' = D(p, σ')          the one evaluation
    Δ' = D' − b' D₀,   b' as b with ⟨D', D₀⟩/‖D₀‖²
    η* = ⟨ρ Δ' + Δ/ρ, ρ Δ' − Δ/ρ⟩ / (2 ‖ρ Δ' − Δ/ρ‖²),                       η = sigmoid(|η*|)/2
    B = (1−η) ρ Δ' − η Δ/ρ
    ζ* = ⟨p − e − c B/(2 q), Δ⟩ / (c ‖Δ‖²),                                  ζ = sigmoid(|ζ*| − 1/2)
    x' = e + c B/(2 ζ)

The next step takes D' for its D₀. Products are over the pixels of a channel, or over all coordinates where there are no
channels; ratios of products are cut at ±2. The first step is DDIM's, and the last one is

    x' = (1 − √(σ σ')) e + c (D₀ − t D₋)/2,      t = 1 − √(r or r − 1/2)/2       (r where r < 1/2, else r − 1/2)

A run of more than 20 steps has ζ = sigmoid((1/2 − |ζ*|) s) instead, s = sigmoid((2 − r²) ⟨D₀, v⟩/‖v‖²), v = (D₀ − D₋)/h,
h = 1/σ' − 1/σ.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.solvers.base import Grid, Interval, Solver, Step
from steindiff.solvers.coefficients import ddim

_CUT = 2.0
_LONG = 20
"""Runs of more steps than this choose ζ in another way."""


@dataclass(frozen=True)
class EVODiff(Solver):
    """The formulas of the module's text: n steps cost n evaluations.

    The balanced differences do not vanish where D is constant, and the last step shrinks the state: the method is no consistent
    ODE solver, and does not come nearer the exact flow with more steps (`docs/solvers.md`).

    Args:
        last: take the last step as the authors' sampler does; False takes DDIM's, which is not theirs.
    """

    last: bool = True
    order = 2

    def init(self, denoiser: Denoiser, x: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """No values."""
        return ()

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor, ...]) -> Step:
        """Predict, evaluate, weigh.

        The state is D₋; or D₋, D₀ and ⟨D₀, D₋⟩/‖D₋‖², where D₀ has been evaluated at the prediction.
        """
        before, current, share = (*state, None, None, None)[:3]
        current = denoiser(x, interval.sigma) if current is None else current
        base = ddim(x, current, *interval.levels)
        if before is None or (interval.last and interval.grid.to_zero):
            return Step(base, current, (current,))
        at = _Place.of(interval)
        if self._ends(interval):
            return Step(_end(base, current, before, at) if self.last else base, current, (current,))
        b = at.balance(_projection(current, before) if share is None else share)
        gap = torch.addcmul(current, b, before, value=-1)
        length = at.c / (2 * at.ratio * torch.sigmoid(b.abs() / 4))
        ahead = denoiser(torch.addcmul(base, length, gap), interval.sigma_next)
        share = _projection(ahead, current)
        up = torch.addcmul(ahead, at.balance(share), current, value=-1).mul_(at.ratio)
        difference = torch.add(up, gap, alpha=-1 / at.ratio)
        eta = torch.sigmoid((_projection(torch.add(up, gap, alpha=1 / at.ratio), difference) / 2).abs()) / 2
        mixed = torch.addcmul((1 - eta) * up, eta / at.ratio, gap, value=-1)
        zeta_star = _projection(gap - mixed, gap, length) / at.c
        zeta = torch.sigmoid((zeta_star.abs() - 0.5) * at.sign(current, before))
        return Step(torch.addcmul(base, at.c / (2 * zeta), mixed), current, (current, ahead, share))

    def nfe(self, sigmas: Tensor) -> int:
        """One a step."""
        return len(sigmas) - 1

    def linear(self, interval: Interval, state: tuple[Tensor, ...]) -> Tensor:
        """R, or what the last step makes of it; weights that depend on network outputs are held with them."""
        linear = interval.sigma_next / interval.sigma
        shrinks = self.last and bool(state) and self._ends(interval)
        return linear * (1 - (interval.sigma * interval.sigma_next).sqrt()) if shrinks else linear

    def _ends(self, interval: Interval) -> bool:
        """Whether this is the last step above σ = 0."""
        return interval.index == interval.grid.steps - 1 - interval.grid.to_zero


@dataclass(frozen=True)
class _Place:
    """The numbers of a step that no network output enters."""

    c: float
    r: float
    r_before: float
    ratio: float
    weight: float
    shrink: float
    h: float
    long: bool

    @classmethod
    def of(cls, interval: Interval) -> "_Place":
        levels, i = interval.grid.levels, interval.index
        before, sigma, end = levels[i - 1 : i + 2]
        last = levels[-2] if interval.grid.to_zero else levels[-1]
        part = (end + last) / (levels[0] + last)
        steps = interval.grid.steps - interval.grid.to_zero
        ratio = math.log(before / sigma) / math.log(sigma / end)
        return cls(
            1 - end / sigma, end / sigma, sigma / before, ratio, (1 - part**2) / 2, math.sqrt(sigma * end), 1 / end - 1 / sigma,
            steps > _LONG,
        )  # fmt: skip

    def balance(self, share: Tensor) -> Tensor:
        """b, from ⟨D₀, D₋⟩/‖D₋‖²."""
        return (1 - self.weight) * math.sqrt(self.r / self.r_before) + self.weight * share

    def sign(self, current: Tensor, before: Tensor) -> Tensor | float:
        """What |ζ*| − 1/2 is multiplied by: 1, or −s in a long run."""
        if not self.long:
            return 1.0
        return -torch.sigmoid(_projection(current, (current - before) / self.h) * (2 - self.r**2))


def _end(base: Tensor, current: Tensor, before: Tensor, at: _Place) -> Tensor:
    t = 1 - math.sqrt(at.r if at.r < 0.5 else at.r - 0.5) / 2
    return (1 - at.shrink) * base + at.c / 2 * (current - t * before)


def _projection(a: Tensor, b: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """⟨a, b⟩/‖b‖² times a factor, between ±2, a number for each channel of each image; 0 where b is."""
    axes = tuple(range(2, a.ndim)) if a.ndim == 4 else tuple(range(1, a.ndim))
    over, under = (a * b).sum(axes, keepdim=True), (b * b).sum(axes, keepdim=True)
    safe = torch.where(under > 0, under, torch.ones_like(under))
    return (factor * over / safe).clamp(-_CUT, _CUT)
