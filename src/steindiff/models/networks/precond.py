"""Preconditioning: a raw network F becomes a denoiser D whose inputs and targets have unit variance at every σ.

Frame: variance exploding, x = x₀ + σ ε, with x₀ of standard deviation σ_data.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from steindiff.errors import InputError, require
from steindiff.schedules import VE

# Only c_noise = log(σ)/4 is cut off here: at σ = 0 the network then returns something finite, which c_out = 0 removes.
_SIGMA_FLOOR = 1e-12


class EDMPrecond(nn.Module):
    """The EDM denoiser around a network F.

        D(x; σ) = c_skip x + c_out F(c_in x; c_noise)
        c_skip = σ_d² / (σ² + σ_d²)        c_out   = σ σ_d / √(σ² + σ_d²)
        c_in   = 1 / √(σ² + σ_d²)          c_noise = log(σ) / 4

    so D(x; 0) = x, and |D| ≤ σ_d² |x| / σ² + σ_d |F| for large σ.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), Table 1, Eq. 7.

    Args:
        network: F(x (B, C, H, W), c_noise (B,)[, labels (B,)]) -> (B, C, H, W); runs in the dtype of its parameters.
        sigma_data: the data's standard deviation σ_d, finite and positive.
    """

    schedule: Final = VE()
    forwards: Final = 1

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        require(0 < sigma_data < math.inf, "pass the data's standard deviation, finite and positive", sigma_data=sigma_data)
        self.network = network
        self.sigma_data = float(sigma_data)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The denoised estimate D(x; σ) ≈ E[x₀ | x] of noisy images x (B, C, H, W), in the dtype of x.

        σ is () or (B,); labels (B,) go to the network where they are given. Values of σ are not inspected (that would
        synchronise a GPU and break `torch.func.vmap`): σ ≥ 0 is the caller's. Raises InputError for other shapes and dtypes.
        """
        s = self._sigma(x, sigma)
        sd = self.sigma_data
        r = torch.hypot(s, torch.full_like(s, sd))  # √(σ² + σ_d²), which σ² would overflow for large σ
        c_skip, c_out, c_in = (c[:, None, None, None] for c in ((sd / r) ** 2, sd * (s / r), 1 / r))
        c_noise = s.clamp(min=_SIGMA_FLOOR).log() / 4

        parameter = next(self.network.parameters(), None)
        dtype = s.dtype if parameter is None else parameter.dtype
        inputs = ((c_in * x).to(dtype), c_noise.to(dtype), *(() if labels is None else (labels,)))
        f: Tensor = self.network(*inputs)
        return (c_skip * x + c_out * f.to(s.dtype)).to(x.dtype)

    @staticmethod
    def _sigma(x: Tensor, sigma: Tensor | float) -> Tensor:
        """σ as (B,) on x's device, in x's dtype but never below float32 (σ² and log σ leave float16's range)."""
        if x.ndim != 4 or not x.is_floating_point():
            raise InputError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}: pass floating-point images (B, C, H, W)")
        s = torch.as_tensor(sigma, device=x.device).to(torch.promote_types(x.dtype, torch.float32))
        b = x.shape[0]
        if s.ndim and s.shape != (b,):
            raise InputError(f"sigma has shape {tuple(s.shape)} for a batch of {b}: pass a 0-dim tensor or one of shape ({b},)")
        return s.expand(b)
