"""What a rule sees and says: the moments of one step's residual in, a decision out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Decision", "GammaRule", "Moments", "Need", "Reason", "Rule", "strongest"]


class Moments(NamedTuple):
    """Batch means of one step in the frame of the blend, 0-dim, float32 or better; NaN where not measured."""

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


class Reason(IntEnum):
    """Why a step has the γ it has."""

    PLAIN = 0
    RULE = 1
    CLAMPED_LOW = 2
    CLAMPED_HIGH = 3
    NON_FINITE = 4
    ZERO_RESIDUAL = 5
    INACTIVE = 6
    FIXED = 7
    WITHIN_NOISE = 8


class Decision(NamedTuple):
    """γ to use, γ before any bound, and the Reason as a 0-dim tensor (read on the host only once, after the run)."""

    gamma: Tensor
    raw: Tensor
    reason: Tensor


class Need(IntEnum):
    """What a rule must know of E[∇·u] at a step."""

    NOTHING = 0
    LINEAR = 1
    FULL = 2


def strongest(reasons: Tensor) -> Tensor:
    """One Reason for several bands, (n,) → (): a clamp before the rule, the rule before noise, noise before nothing."""
    order = (Reason.CLAMPED_HIGH, Reason.CLAMPED_LOW, Reason.RULE, Reason.WITHIN_NOISE, Reason.ZERO_RESIDUAL)
    result = torch.full_like(reasons[0], Reason.NON_FINITE)
    for reason in reversed(order):
        result = torch.where((reasons == reason).any(), reason, result)
    return result


class Rule(ABC):
    """Decides how far a step goes, from its moments."""

    def check(self, steps: int) -> None:  # noqa: B027 - most rules have nothing to check
        """Refuse a run of this many steps: most rules refuse none."""

    @abstractmethod
    def plan(self, sigmas: list[float]) -> list[Need]:
        """What must be measured at each corrected step, given their VE noise levels."""


class GammaRule(Rule):
    """Chooses one γ for the blend (1−γ) x + γ T(x)."""

    def plan(self, sigmas: list[float]) -> list[Need]:
        """Step by step."""
        return [self.need(sigma) for sigma in sigmas]

    @abstractmethod
    def need(self, sigma: float) -> Need:
        """What must be measured at VE noise level sigma."""

    @abstractmethod
    def decide(self, m: Moments, index: int) -> Decision:
        """γ for step `index`."""
