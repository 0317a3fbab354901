"""Published closed-form rescalings, as rules: on first-order VE steps each is a γ.

Peers of the correction, with their authors' defaults; their equivalences are tested in `tests/test_peers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steindiff.corrections.rules import Decision, GammaRule, Moments, Need, Reason
from steindiff.errors import InputError

__all__ = ["DCW", "EpsilonScaling"]


@dataclass(frozen=True)
class EpsilonScaling(GammaRule):
    """γ = 1/b: the noise prediction divided by b (Ning et al. 2024), exactly so on a first-order VE step.

    For other solvers, and as published, scale the network's own ε: `denoisers.EpsilonScaled`.

    Args:
        b: 1.0048 in the paper for CIFAR-10 with 13 Euler steps; it depends on solver and NFE.

    Raises:
        InputError: b ≤ 0.
    """

    b: float = 1.0048

    def __post_init__(self) -> None:
        if not 0 < self.b < float("inf"):
            raise InputError(f"b={self.b}: need a positive scale (1.0048 is the published value at 13 Euler steps)")

    def need(self, sigma: float) -> Need:
        """Nothing."""
        return Need.NOTHING

    def decide(self, m: Moments, index: int) -> Decision:
        """1/b."""
        gamma = torch.full_like(m.uu, 1 / self.b)
        return Decision(gamma, gamma, torch.full_like(gamma, Reason.FIXED))


@dataclass(frozen=True)
class DCW(GammaRule):
    """γ = 1 − λ r/(1−r): x' + λ (x' − D) on a first-order VE step (pixel mode of DCW, CVPR 2026), λ = scale·σ/σ_max.

    The published method acts on a wavelet band; the pixel mode is its all-band form.

    Args:
        scale: λ at σ_max; 0.005 is the published value at 13 Euler steps.
        sigma_max: the highest noise level of the grid.

    Raises:
        InputError: sigma_max ≤ 0.
    """

    scale: float = 0.005
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_max > 0:
            raise InputError(f"sigma_max={self.sigma_max}: need the grid's highest noise level, > 0")

    def need(self, sigma: float) -> Need:
        """Nothing."""
        return Need.NOTHING

    def decide(self, m: Moments, index: int) -> Decision:
        """From the noise levels alone."""
        sigma, sigma_next = m.sigma / m.alpha, m.sigma_next / m.alpha_next
        r = sigma_next / sigma
        gamma = 1 - self.scale * sigma / self.sigma_max * r / (1 - r)
        return Decision(gamma, gamma, torch.full_like(gamma, Reason.FIXED))
