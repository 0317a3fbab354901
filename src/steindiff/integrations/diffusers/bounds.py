"""Bounds on the denoised value that a scheduler's config asks for: clipping, and dynamic thresholding."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.errors import require


@dataclass(frozen=True)
class Clip:
    """D ← min(max(D, −r), r), as `clip_sample` asks."""

    limit: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.limit < math.inf, "need a positive range", clip_sample_range=self.limit)

    def __call__(self, denoised: Tensor) -> Tensor:
        """The clipped value."""
        return denoised.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class Threshold:
    """D ← min(max(D, −s), s)/s, s the quantile of |D| over an image, between 1 and `most` (Saharia et al. 2022, 2.3).

    Args:
        quantile: which quantile, in (0, 1].
        most: the largest s, at least 1.
    """

    quantile: float = 0.995
    most: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.quantile <= 1, "need a quantile above 0, at most 1", dynamic_thresholding_ratio=self.quantile)
        require(1 <= self.most < math.inf, "need 1 or more: s is never below 1", sample_max_value=self.most)

    def __call__(self, denoised: Tensor) -> Tensor:
        """The value within its own quantile, (B, *event)."""
        size = torch.quantile(denoised.abs().flatten(1), self.quantile, dim=1).clamp(1, self.most)
        s = size.reshape(-1, *[1] * (denoised.ndim - 1))
        return torch.minimum(torch.maximum(denoised, -s), s) / s


Bound = Clip | Threshold


@dataclass(frozen=True, eq=False)
class Bounded:
    """A denoiser whose value is bounded."""

    denoiser: Denoiser
    bound: Bound

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The bound of D(x, σ)."""
        return self.bound(self.denoiser(x, sigma))
