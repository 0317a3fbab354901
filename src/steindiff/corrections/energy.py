"""Match the energy of the true marginal instead of the clean image: our own rule, first version.

The true marginal at VE noise level σ satisfies, for every orthogonal projection P_b of rank d_b and with no reference data,

    E‖P_b x_σ‖² = M_b + σ² d_b,      M_b = E‖P_b x*‖² = E‖P_b D‖² + σ² E[tr P_b ∂D/∂x]      (Tweedie, Stein).

A first-order step T₁ = r x + (1−r) D, r = σ'/σ, started on the marginal, loses exactly (1−r)² (M_b − E‖P_b D‖²) of it. With the
solver's candidate T and w = T − T₁, the corrected state is T₁ + Σ_b η_b P_b w, and η_b makes up that deficit:

    E‖P_b(T₁ + η w)‖² = E‖P_b T₁‖² + deficit_b,      a quadratic in η; η = 1 is the plain solver.

The noise level is never left, no evaluation is added, and none but M_b needs a derivative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from steindiff.corrections.bands import Bands, Whole
from steindiff.corrections.rules import Decision, Need, Reason, Rule
from steindiff.errors import InputError

__all__ = ["BandMoments", "Energy"]


class BandMoments(NamedTuple):
    """Energies of one step, per sample and band (B, n), and what they are compared with."""

    first: Tensor
    """‖P_b T₁‖²"""
    cross: Tensor
    """⟨P_b T₁, P_b w⟩"""
    move: Tensor
    """‖P_b w‖²"""
    denoised: Tensor
    """‖P_b D‖²"""
    second: Tensor
    """M_b, (n,)"""
    sizes: Tensor
    """d_b, (n,)"""
    sigma: Tensor
    sigma_next: Tensor


@dataclass(frozen=True, eq=False)
class Energy(Rule):
    """η_b = the root nearest 1 of a η² + 2 b η = deficit_b, a = E‖P_b w‖², b = E⟨P_b T₁, P_b w⟩, within a trust region.

    Only what is significant is corrected: η − 1 is first pulled towards 0 by `significance` standard errors, so that a batch of
    one is the plain solver's and a deficit within noise changes nothing.

    Args:
        second_moment: M_b, (n,) or a number for one band, from data, a model or `calibrate`; None: from this run's own first
            corrected step, at the cost of one network derivative.
        bands: the projections; one band by default.
        deficit: "local", what a first-order step loses in this interval, (1−r)² (M_b − E‖P_b D‖²); or "track", everything lost
            so far, M_b + σ'² d_b − E‖P_b T₁‖².
        eta_min: lower end of the trust region, ≤ 1.
        eta_max: upper end, ≥ 1.
        significance: how many standard errors of η count as noise; 0 corrects everything.

    Raises:
        InputError: options outside these.
    """

    second_moment: Tensor | float | None = None
    bands: Bands = field(default_factory=Whole)
    deficit: Literal["local", "track"] = "local"
    eta_min: float = 0.5
    eta_max: float = 1.5
    significance: float = 2.0

    def __post_init__(self) -> None:
        if not self.eta_min <= 1 <= self.eta_max < float("inf") or not self.significance >= 0:
            raise InputError(
                f"eta_min={self.eta_min}, eta_max={self.eta_max}, significance={self.significance}: need eta_min ≤ 1 ≤ "
                "eta_max < inf and significance ≥ 0"
            )
        if self.deficit not in ("local", "track"):
            raise InputError(f"deficit={self.deficit!r}: choose 'local' or 'track'")
        if self.second_moment is not None:
            m = torch.as_tensor(self.second_moment, dtype=torch.float64)
            if m.ndim > 1 or not bool((torch.isfinite(m) & (m >= 0)).all()):
                raise InputError(f"second_moment={self.second_moment}: need E‖P_b x*‖² ≥ 0, finite, one number per band")
            object.__setattr__(self, "second_moment", m.reshape(-1))

    def plan(self, sigmas: list[float]) -> list[Need]:
        """One derivative, at the first step, where M is not given."""
        first = Need.FULL if self.second_moment is None else Need.NOTHING
        return [first, *[Need.NOTHING] * (len(sigmas) - 1)][: len(sigmas)]

    def decide(self, m: BandMoments) -> Decision:
        """η per band, (n,), with its raw value and reason."""
        target = self._deficits(m)
        a, b, c = m.move.mean(0), m.cross.mean(0), target.mean(0)
        raw = _root_near_one(a, b, c)
        spread = m.move * raw**2 + 2 * m.cross * raw - target
        se = _standard_error(spread) / (2 * (a * raw + b)).abs()
        step = raw - 1
        if self.significance > 0:
            step = step.sign() * (step.abs() - self.significance * se).clamp_min(0)
        eta = (1 + step).clamp(self.eta_min, self.eta_max)
        reason = torch.where(step == 0, Reason.WITHIN_NOISE, Reason.RULE)
        reason = torch.where(1 + step < self.eta_min, Reason.CLAMPED_LOW, reason)
        reason = torch.where(1 + step > self.eta_max, Reason.CLAMPED_HIGH, reason)
        reason = torch.where(torch.isfinite(raw) & ~step.isnan(), reason, Reason.NON_FINITE)
        # A move below the rounding of the state says nothing about energy.
        still = a <= (8 * torch.finfo(a.dtype).eps) ** 2 * m.first.mean(0)
        reason = torch.where(still, Reason.ZERO_RESIDUAL, reason)
        keep = (reason == Reason.NON_FINITE) | (reason == Reason.ZERO_RESIDUAL)
        return Decision(torch.where(keep, 1.0, eta), raw, reason)

    def _deficits(self, m: BandMoments) -> Tensor:
        """Per sample and band, (B, n)."""
        if self.deficit == "local":
            return (1 - m.sigma_next / m.sigma) ** 2 * (m.second - m.denoised)
        return m.second + m.sigma_next**2 * m.sizes - m.first


def _root_near_one(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The root of aη² + 2bη − c nearest 1; where there is none, the extremum −b/a, as close as the energy comes."""
    root = (b * b + a * c).clamp_min(0).sqrt()
    high, low = (-b + root) / a, (-b - root) / a
    return torch.where((high - 1).abs() <= (low - 1).abs(), high, low)


def _standard_error(z: Tensor) -> Tensor:
    """Of the batch mean, (n,); infinite for a batch of one."""
    if len(z) < 2:
        return torch.full_like(z[0], float("inf"))
    return torch.std(z, dim=0) / math.sqrt(len(z))
