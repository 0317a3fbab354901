"""Published closed-form rescalings as corrections, with their authors' defaults: on first-order VE steps each is a γ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.corrections.blend import Moments, PresetBlend
from steindiff.errors import require


@dataclass(frozen=True)
class EpsilonScaling(PresetBlend):
    """γ = 1/b: the noise prediction divided by b (Ning et al. 2024), exactly so on a first-order VE step.

    For other solvers, and as published, scale the network's own ε: `denoisers.EpsilonScaled`, which says what b is.
    """

    b: float = 1.0048

    def __post_init__(self) -> None:
        published = "1.0048 is the published value at 13 Euler steps"
        require(0 < self.b < float("inf"), f"need a positive scale ({published})", b=self.b)

    def gamma(self, m: Moments, index: int) -> Tensor:
        """1/b."""
        return torch.full_like(m.uu, 1 / self.b)


@dataclass(frozen=True)
class DCW(PresetBlend):
    """γ = 1 − λ r/(1−r): x' + λ (x' − D) on a first-order VE step (pixel mode of DCW, CVPR 2026), λ = scale·σ/σ_max.

    The published method acts on a wavelet band; the pixel mode is its all-band form.

    Args:
        scale: λ at σ_max; 0.005 is the published value at 13 Euler steps.
        sigma_max: the highest noise level of the grid, > 0.
    """

    scale: float = 0.005
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(self.sigma_max > 0, "need the grid's highest noise level, > 0", sigma_max=self.sigma_max)

    def gamma(self, m: Moments, index: int) -> Tensor:
        """1 − λ r/(1−r), from the noise levels alone."""
        sigma, sigma_next = m.sigma / m.alpha, m.sigma_next / m.alpha_next
        r = sigma_next / sigma
        return 1 - self.scale * sigma / self.sigma_max * r / (1 - r)
