"""Preconditioning: a raw network F becomes a denoiser D whose inputs and targets have unit variance at every σ.

    D(x; σ) = c_skip x + c_out F(c_in x; c_noise)

Frame: variance exploding, x = x₀ + σ ε. Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models" (2022), Table 1, for all four kinds.
"""

import math
from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor, nn

from steindiff.errors import InputError, require
from steindiff.schedules import VE, Schedule, VPCosine, VPLinear

# Only logarithms of σ are cut off here: at σ = 0 the network then returns something finite, which c_out = 0 removes.
_SIGMA_FLOOR = 1e-12
Range = tuple[float, float]


class Preconditioned(nn.Module, ABC):
    """The denoiser of the module's docstring around a network F.

    Args:
        network: F(x (B, C, H, W), c_noise (B,)[, labels (B,)]) -> (B, C, H, W); runs in the dtype of its parameters. Of more
            channels than x has (learned variances) the first C are taken.
        sigma_data: the data's standard deviation σ_d, finite and positive.
        noise_range: the lowest and the highest σ that the network was made for.
        schedule: the schedule whose α the network's own x has.
    """

    forwards: Final = 1

    def __init__(self, network: nn.Module, sigma_data: float, noise_range: Range, schedule: Schedule) -> None:
        super().__init__()
        require(0 < sigma_data < math.inf, "pass the data's standard deviation, finite and positive", sigma_data=sigma_data)
        low, high = noise_range
        require(0 <= low < high, "need 0 ≤ the lowest noise level < the highest", noise_range=noise_range)
        self.network, self.schedule = network, schedule
        self.sigma_data, self.noise_range = float(sigma_data), (float(low), float(high))

    @abstractmethod
    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise at noise levels s (B,)."""

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The denoised estimate D(x; σ) ≈ E[x₀ | x] of noisy images x (B, C, H, W), in the dtype of x.

        σ is () or (B,); labels (B,) go to the network where they are given. Values of σ are not inspected (that would
        synchronise a GPU and break `torch.func.vmap`): σ ≥ 0 is the caller's. Raises InputError for other shapes and dtypes.
        """
        s = self._sigma(x, sigma)
        *scales, c_noise = self.coefficients(s)
        c_skip, c_out, c_in = (c[:, None, None, None] for c in scales)
        parameter = next(self.network.parameters(), None)
        dtype = s.dtype if parameter is None else parameter.dtype
        inputs = ((c_in * x).to(dtype), c_noise.to(dtype), *(() if labels is None else (labels,)))
        f: Tensor = self.network(*inputs)[:, : x.shape[1]]
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


class EDMPrecond(Preconditioned):
    """The EDM denoiser, and EDM2's.

        c_skip = σ_d² / (σ² + σ_d²)        c_out   = σ σ_d / √(σ² + σ_d²)
        c_in   = 1 / √(σ² + σ_d²)          c_noise = log(σ) / 4

    so D(x; 0) = x, and |D| ≤ σ_d² |x| / σ² + σ_d |F| for large σ. Source: Table 1, Eq. 7.
    """

    def __init__(self, network: nn.Module, sigma_data: float, noise_range: Range = (0.0, math.inf)) -> None:
        super().__init__(network, sigma_data, noise_range, VE())

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As in the class's docstring."""
        sd = self.sigma_data
        r = torch.hypot(s, torch.full_like(s, sd))  # √(σ² + σ_d²), which σ² would overflow for large σ
        return (sd / r) ** 2, sd * (s / r), 1 / r, s.clamp(min=_SIGMA_FLOOR).log() / 4


class VPPrecond(Preconditioned):
    """The network of a variance-preserving process of M steps: c_skip = 1, c_out = −σ, c_in = 1/√(1+σ²), c_noise = (M−1) t(σ).

    t(σ) is the time of `VPLinear(β_min, β_min + β_d)`, in its stable form. EDM's program takes a difference in float32, and is
    off by 1.3 % at σ = 0.002; D hardly notices, as c_out is small there.
    """

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float,
        noise_range: Range,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        steps: int = 1000,
    ) -> None:
        self._line = VPLinear(beta_min, beta_min + beta_d)
        super().__init__(network, sigma_data, noise_range, self._line)
        self.steps = steps

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As in the class's docstring."""
        one = torch.ones_like(s)
        return one, -s, 1 / torch.hypot(s, one), (self.steps - 1) * self._line.time(s)


class VEPrecond(Preconditioned):
    """The network of a variance-exploding process: c_skip = 1, c_out = σ, c_in = 1, c_noise = log(σ/2)."""

    def __init__(self, network: nn.Module, sigma_data: float, noise_range: Range = (0.02, 100.0)) -> None:
        super().__init__(network, sigma_data, noise_range, VE())

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As in the class's docstring."""
        one = torch.ones_like(s)
        return one, s, one, (s / 2).clamp(min=_SIGMA_FLOOR).log()


class IDDPMPrecond(Preconditioned):
    """The network of a process with M trained levels u_0 > … > u_M = 0: c_skip = 1, c_out = −σ, c_in = 1/√(1+σ²).

    c_noise = M − 1 − j(σ), j the index of the trained level nearest σ. The network cannot be told a level between two trained
    ones, so it is told the nearest; c_in and c_out take σ itself, which is the noise that x has. `nearest` gives the trained
    levels, for a grid on which nothing is rounded. Source: Table 1; Nichol and Dhariwal (2021).

    Args:
        network: F; it may have 2C channels.
        sigma_data: the data's standard deviation.
        levels: u, (M + 1,), decreasing to 0.
    """

    def __init__(self, network: nn.Module, sigma_data: float, levels: Tensor) -> None:
        ordered = levels.ndim == 1 and len(levels) >= 3 and bool((levels.diff() < 0).all()) and float(levels[-1]) == 0
        require(ordered, "need trained levels that decrease to 0, at least three", levels=tuple(levels.shape))
        super().__init__(network, sigma_data, (float(levels[-2]), float(levels[0])), VPCosine())
        self.register_buffer("levels", levels)

    def nearest(self, sigma: Tensor) -> Tensor:
        """The trained levels nearest σ, of its shape and dtype."""
        return self.get_buffer("levels").to(sigma)[self._index(sigma.reshape(-1)).reshape(sigma.shape)]

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As in the class's docstring."""
        one = torch.ones_like(s)
        return one, -s, 1 / torch.hypot(s, one), len(self.get_buffer("levels")) - 2.0 - self._index(s)

    def _index(self, s: Tensor) -> Tensor:
        return (s[:, None] - self.get_buffer("levels").to(s)).abs().argmin(1)
