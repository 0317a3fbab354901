"""The paper's rule and its relatives: one γ a step.

The corrected state is (1−γ) x + γ T(x), with residual u = x − T(x) in the frame of the blend, x = α x* + σ ε.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from steindiff.corrections.rules import Decision, GammaRule, Moments, Need, Reason
from steindiff.errors import InputError

__all__ = ["CleanTarget", "FixedGamma", "NoiseConsistent", "stein_ratio"]


def stein_ratio(m: Moments) -> Tensor:
    """γ* = [(1 − 1/α) E⟨u,x⟩ + (σ²/α) E[∇·u]] / E‖u‖², the minimiser of E‖(1−γ)x + γT − x*‖² (SteinDiff Eq. 11)."""
    return ((1 - 1 / m.alpha) * m.ux + m.sigma**2 / m.alpha * m.div) / m.uu


def _bounded(raw: Tensor, low: float | None, high: float | None, uu: Tensor) -> Decision:
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


@dataclass(frozen=True)
class CleanTarget(GammaRule):
    """γ = max(γ*, γ_min), the paper's rule (Eq. 11, Algorithm 1); no upper bound unless `gamma_max` is given.

    With an exact denoiser and a first-order VE step γ* = 1/(1−r) > 1: the step goes to D(x), noise level zero, while the next
    one assumes σ'. Printed literally it diverges on exact models; `gamma_max=1` makes it a blend.

    Args:
        gamma_min: lower bound, 1e-6 in the paper.
        gamma_max: upper bound; None, as printed, has none.
        mode: where E[∇·u] comes from (paper E.1): "full", an estimator at every step; "analytical", the solver's linear part
            alone, no network derivative; "adaptive", analytical above `threshold`, full below.
        threshold: the VE noise level of "adaptive"; the paper gives no value, 1.0 is ours.

    Raises:
        InputError: bounds or threshold that are not positive, or out of order; an unknown mode.
    """

    gamma_min: float = 1e-6
    gamma_max: float | None = None
    mode: Literal["full", "analytical", "adaptive"] = "full"
    threshold: float = 1.0

    def __post_init__(self) -> None:
        high = float("inf") if self.gamma_max is None else self.gamma_max
        if not 0 < self.gamma_min <= high or float("inf") in (self.gamma_min, self.gamma_max):
            raise InputError(
                f"gamma_min={self.gamma_min}, gamma_max={self.gamma_max}: need 0 < gamma_min ≤ gamma_max < inf (None: no bound)"
            )
        if self.mode not in ("full", "analytical", "adaptive") or not self.threshold > 0:
            raise InputError(f"mode={self.mode!r}, threshold={self.threshold}: choose full, analytical or adaptive, and > 0")

    def need(self, sigma: float) -> Need:
        """By mode."""
        linear = self.mode == "analytical" or (self.mode == "adaptive" and sigma > self.threshold)
        return Need.LINEAR if linear else Need.FULL

    def decide(self, m: Moments, index: int) -> Decision:
        """Eq. 11, then the bounds."""
        return _bounded(stein_ratio(m), self.gamma_min, self.gamma_max, m.uu)


@dataclass(frozen=True)
class NoiseConsistent(GammaRule):
    """γ = [(1 − α'/α) E⟨u,x⟩ + (α'/α − σ'/σ) σ² E[∇·u]] / E‖u‖²: the target is α' x* + σ' ε, noise included.

    Exactly 1, in expectation, for DDIM with an exact denoiser, in every schedule; so it pulls high-order solvers back to first
    order. A check and a fixed point rather than a sampler (derived here; not in the paper).

    Args:
        gamma_min: lower bound, or None.
        gamma_max: upper bound, or None.

    Raises:
        InputError: bounds that are not finite, or out of order.
    """

    gamma_min: float | None = None
    gamma_max: float | None = None

    def __post_init__(self) -> None:
        bounds = [b for b in (self.gamma_min, self.gamma_max) if b is not None]
        if not all(abs(b) < float("inf") for b in bounds) or bounds != sorted(bounds):
            raise InputError(
                f"gamma_min={self.gamma_min}, gamma_max={self.gamma_max}: need finite bounds, gamma_min ≤ gamma_max"
            )

    def need(self, sigma: float) -> Need:
        """The divergence at every step."""
        return Need.FULL

    def decide(self, m: Moments, index: int) -> Decision:
        """The regression on the noise-consistent state."""
        a, s = m.alpha_next / m.alpha, m.sigma_next / m.sigma
        raw = ((1 - a) * m.ux + (a - s) * m.sigma**2 * m.div) / m.uu
        return _bounded(raw, self.gamma_min, self.gamma_max, m.uu)


@dataclass(frozen=True)
class FixedGamma(GammaRule):
    """γ_i from a table, one value per step: no statistics, no derivative, and an image that depends on its seed alone.

    Args:
        table: γ for steps 0…n−1.

    Raises:
        InputError: an empty table or a value that is not finite; at the start of a run, a table of another length.
    """

    table: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", tuple(float(g) for g in self.table))
        bad = [g for g in self.table if not abs(g) < float("inf")]
        if bad or not self.table:
            raise InputError(f"gamma table {self.table}: need at least one value, all finite")

    @classmethod
    def from_gammas(cls, gammas: Sequence[float]) -> FixedGamma:
        """Freeze the γ of an earlier run: `FixedGamma.from_gammas([r.gamma for r in result.trace])`."""
        return cls(tuple(gammas))

    @classmethod
    def load(cls, path: str | Path) -> FixedGamma:
        """Read a JSON list of numbers. Raises InputError where the file holds anything else."""
        try:
            values = json.loads(Path(path).read_text())
            if not isinstance(values, list) or not all(type(g) in (int, float) for g in values):
                raise InputError("it holds something else")
            return cls(tuple(float(g) for g in values))
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"{path} is not a gamma table (a JSON list of numbers): {error}") from error

    def check(self, steps: int) -> None:
        """One value per step."""
        if len(self.table) != steps:
            raise InputError(f"gamma table of {len(self.table)} values for a run of {steps} steps: need one value per step")

    def need(self, sigma: float) -> Need:
        """Nothing."""
        return Need.NOTHING

    def decide(self, m: Moments, index: int) -> Decision:
        """The table's value."""
        gamma = torch.full_like(m.uu, self.table[index])
        return Decision(gamma, gamma, torch.full_like(gamma, Reason.FIXED))
