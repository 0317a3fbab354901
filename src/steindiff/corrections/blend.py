"""Corrections that blend: x' = (1−γ) x + γ T(x) in some frame, one γ a step, decided from the moments of the residual.

The residual is u = x − T(x) in the frame of the blend, where the state is x = α x* + σ ε.
"""

from abc import abstractmethod
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.corrections.base import Correction, Outcome, Reason, Run, strongest
from steindiff.corrections.proposal import Divergence, Proposal, by_tweedie
from steindiff.divergence import dot
from steindiff.io.processes import Gather, alone


class Moments(NamedTuple):
    """Batch means of one step in the frame of the blend, (), float32 or better; NaN where not measured."""

    alpha: Tensor
    sigma: Tensor
    alpha_next: Tensor
    sigma_next: Tensor
    ux: Tensor
    """E⟨u, x⟩"""
    uu: Tensor
    """E‖u‖²"""
    div: Tensor
    """E[∇·u]"""
    div_se: Tensor
    """Standard error of div."""


class Decision(NamedTuple):
    """γ to use, γ before any bound, and the Reason, as tensors () or (B,): the host reads them only once, after the run."""

    gamma: Tensor
    raw: Tensor
    reason: Tensor


class Need(IntEnum):
    """What a blend must know of E[∇·u] at a step, and how it was found."""

    NOTHING = 0
    LINEAR = 1
    """That of the solver's linear part."""
    TWEEDIE = 2
    """The whole of it, by Tweedie's formula, without a derivative."""
    FROZEN = 3
    """By the estimator, with the solver's history held constant: where there is one, not what Stein's identity asks for."""
    FULL = 4
    """The whole of it: by the estimator where the step depends on x alone, by Tweedie's formula where also on a history."""

    def met(self, remembers: bool) -> "Need":
        """How the need is met at a step that does or does not depend on x through a history."""
        if self is Need.FULL and remembers:
            return Need.TWEEDIE
        return Need.FULL if self is Need.FROZEN and not remembers else self


class Blend(Correction):
    """x' = (1−γ) x + γ T(x), γ from the moments of this step; γ = 1 is bitwise the solver's own step."""

    @abstractmethod
    def need(self, sigma: float) -> Need:
        """What must be measured at VE noise level sigma."""

    @abstractmethod
    def decide(self, m: Moments, index: int) -> Decision:
        """γ for step `index`."""

    def differentiates(self, run: Run) -> bool:
        """Whether the estimator may be needed at any of the steps."""
        return any(self.need(run.grid.levels[i]) >= Need.FROZEN for i in run.steps)

    def correct(self, proposal: Proposal, state: None) -> Outcome:
        """Measure, decide, blend."""
        interval = proposal.interval
        need = self.need(interval.grid.levels[interval.index]).met(proposal.remembers)
        m = _moments(proposal, need)
        decision = self.decide(m, interval.index)
        numbers = {"gamma": decision.gamma, "gamma_raw": decision.raw, **m._asdict(), "source": torch.full_like(m.uu, need)}
        if need is Need.FULL:
            numbers["noise_ratio"] = _noise_ratio(proposal, m.div)
        reason = strongest(decision.reason) if decision.reason.ndim else decision.reason
        return Outcome(proposal.blend(decision.gamma), None, numbers, reason)


class PresetBlend(Blend):
    """A blend whose γ no statistics decide."""

    @abstractmethod
    def gamma(self, m: Moments, index: int) -> Tensor:
        """γ for step `index`, () in float32 or better; only the noise levels and α of `m` matter."""

    def need(self, sigma: float) -> Need:
        """No divergence is needed."""
        return Need.NOTHING

    def decide(self, m: Moments, index: int) -> Decision:
        """γ as it is."""
        gamma = self.gamma(m, index)
        return Decision(gamma, gamma, torch.full_like(gamma, Reason.FIXED))


def _moments(proposal: Proposal, need: Need) -> Moments:
    """⟨u,x⟩ = α α' ⟨ρy − T, y⟩ and ‖u‖² = α'² ‖ρy − T‖², with y the VE state."""
    match need:
        case Need.FULL | Need.FROZEN:
            div = proposal.divergence
        case Need.TWEEDIE:
            div = proposal.tweedie_divergence
        case Need.LINEAR:
            div = proposal.linear_divergence
        case Need.NOTHING:
            div = Divergence(*(torch.full_like(proposal.rho, float("nan")),) * 2)
    a, a_next, interval = proposal.alpha, proposal.alpha_next, proposal.interval
    ux, uu = inner_products(proposal.x, proposal.next, proposal.rho, proposal.gather)
    return Moments(a, a * interval.sigma, a_next, a_next * interval.sigma_next, a * a_next * ux, a_next**2 * uu, *div)


def inner_products(x: Tensor, candidate: Tensor, rho: Tensor, gather: Gather = alone) -> tuple[Tensor, Tensor]:
    """Batch means of ⟨u, x⟩ and ‖u‖², u = ρx − T, summed in float32 or better; a residual that is all rounding counts as 0."""
    wide, eps = torch.promote_types(x.dtype, torch.float32), torch.finfo(candidate.dtype).eps
    x = x.to(wide)
    u = rho * x - candidate.to(wide)
    ux, uu, xx = (gather(dot(a, b)).mean(0) for a, b in ((u, x), (u, u), (x, x)))
    return ux, torch.where(uu > (4 * eps * rho) ** 2 * xx, uu, uu * 0)  # times 0: NaN stays NaN


def _noise_ratio(proposal: Proposal, div: Tensor) -> Tensor:
    """σ̂/σ, σ̂² = E⟨w, y−D⟩/E[∇·w] with w = y − T: Tweedie's formula over Stein's identity.

    For a first-order step w is (1−r)(y−D), and σ̂² = E‖y−D‖²/E[∇·(y−D)]. div is that of y − T/ρ, so E[∇·w] = d − ρ (d − div).
    """
    y, rho, d = proposal.x, proposal.rho, proposal.x[0].numel()
    tweedie = by_tweedie(y - proposal.next, y - proposal.denoised, proposal.interval.sigma**2, proposal.gather).mean
    return (tweedie / (d - rho * (d - div))).sqrt()


def bounded(raw: Tensor, low: float | None, high: float | None, uu: Tensor) -> Decision:
    """γ = min(max(raw, low), high); 1 where the statistics say nothing, or what they say is no number in float32."""
    gamma, reason = raw, torch.full_like(raw, Reason.RULE)
    if low is not None:
        reason = torch.where(gamma < low, Reason.CLAMPED_LOW, reason)
        gamma = gamma.clamp_min(low)
    if high is not None:
        reason = torch.where(gamma > high, Reason.CLAMPED_HIGH, reason)
        gamma = gamma.clamp_max(high)
    finite = torch.isfinite(raw.to(torch.float32)) & torch.isfinite(uu)
    reason = torch.where(finite, reason, Reason.NON_FINITE)
    reason = torch.where(uu == 0, Reason.ZERO_RESIDUAL, reason)
    return Decision(torch.where(reason <= Reason.CLAMPED_HIGH, gamma, 1.0), raw, reason)
