"""Noise schedules: the forward law x_t = α(t) x* + σ(t) ε, and its change to VE coordinates.

Solvers here work in VE coordinates, y = x/α, whose noise level is s = σ/α, so that y = x* + s ε. A schedule is then two
maps: the time t at which a network must be asked about noise level s, and the factor α that takes y back to the model's x.
Half-log-SNR: λ = log(α/σ) = −log s.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steindiff.errors import InputError, require


class Schedule(ABC):
    """x_t = α(t) x* + σ(t) ε; t, α, σ are dimensionless tensors of any shape, mapped elementwise."""

    @abstractmethod
    def ratio(self, t: Tensor) -> Tensor:
        """s(t) = σ(t)/α(t), the noise level in VE coordinates; increasing in t."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """t(s), the inverse of `ratio`."""

    @abstractmethod
    def alpha_of(self, ratio: Tensor) -> Tensor:
        """α as a function of the VE noise level s."""

    def alpha(self, t: Tensor) -> Tensor:
        """α(t)."""
        return self.alpha_of(self.ratio(t))

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t) = s(t) α(t), in the model's own coordinates."""
        s = self.ratio(t)
        return s * self.alpha_of(s)

    def lam(self, t: Tensor) -> Tensor:
        """λ(t) = log(α/σ) = −log s(t)."""
        return -self.ratio(t).log()

    def time_of_lam(self, lam: Tensor) -> Tensor:
        """t(λ), the inverse of `lam`."""
        return self.time(torch.exp(-lam))


@dataclass(frozen=True)
class VE(Schedule):
    """α = 1, σ = t: the EDM convention, t = s (Karras et al. 2022)."""

    def ratio(self, t: Tensor) -> Tensor:
        """s = t."""
        return t

    def time(self, ratio: Tensor) -> Tensor:
        """t = s."""
        return ratio

    def alpha_of(self, ratio: Tensor) -> Tensor:
        """α = 1."""
        return torch.ones_like(ratio)


class _VariancePreserving(Schedule):
    """α² + σ² = 1, hence α = 1/√(1+s²) whatever the time."""

    def alpha_of(self, ratio: Tensor) -> Tensor:
        return torch.rsqrt(1 + ratio**2)


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """log α = −(β₁−β₀)t²/4 − β₀t/2, t ∈ [0, 1], 0 < β₀ < β₁ (Song et al. 2021, VP-SDE with linear β)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        ordered = 0 < self.beta_min < self.beta_max
        require(ordered, "need 0 < beta_min < beta_max", beta_min=self.beta_min, beta_max=self.beta_max)

    def ratio(self, t: Tensor) -> Tensor:
        """s = √(e^B − 1), B = −2 log α = (β₁−β₀)t²/2 + β₀t."""
        return torch.expm1((self.beta_max - self.beta_min) * t**2 / 2 + self.beta_min * t).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        """t = 2B / (β₀ + √(β₀² + 2(β₁−β₀)B)), B = log(1+s²): the stable root of the quadratic."""
        B = torch.log1p(ratio**2)
        return 2 * B / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B).sqrt())


@dataclass(frozen=True)
class VPCosine(_VariancePreserving):
    """α(t) = cos(π/2 · (t+o)/(1+o)) / cos(π/2 · o/(1+o)), t ∈ [0, 1), o > 0 (Nichol & Dhariwal 2021)."""

    offset: float = 0.008

    def __post_init__(self) -> None:
        require(self.offset > 0, "need offset > 0 (the published value is 0.008)", offset=self.offset)

    def ratio(self, t: Tensor) -> Tensor:
        """s = √(α⁻² − 1), with 1 − α² = sin(θ−θ₀) sin(θ+θ₀)/cos²θ₀ so that nothing cancels as t → 0."""
        theta0 = math.pi / 2 * self.offset / (1 + self.offset)
        theta = math.pi / 2 * (t + self.offset) / (1 + self.offset)
        return (torch.sin(theta - theta0) * torch.sin(theta + theta0)).sqrt() / torch.cos(theta)

    def time(self, ratio: Tensor) -> Tensor:
        """θ = arctan2(√(sin²θ₀ + s²), cos θ₀), then t = 2θ(1+o)/π − o."""
        theta0 = math.pi / 2 * self.offset / (1 + self.offset)
        theta = torch.atan2((math.sin(theta0) ** 2 + ratio**2).sqrt(), torch.full_like(ratio, math.cos(theta0)))
        return theta * (2 * (1 + self.offset) / math.pi) - self.offset


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """α = 1 − t/T, σ = t/T, t ∈ [0, T): straight paths from data to noise (Liu et al. 2023; Lipman et al. 2023).

    Args:
        scale: T, the network's time at pure noise; 1 as published, and often 1000.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, "need the network's time at pure noise, above 0", scale=self.scale)

    def ratio(self, t: Tensor) -> Tensor:
        """s = t/(T−t)."""
        return t / (self.scale - t)

    def time(self, ratio: Tensor) -> Tensor:
        """t = T s/(1+s)."""
        return self.scale * ratio / (1 + ratio)

    def alpha_of(self, ratio: Tensor) -> Tensor:
        """α = 1/(1+s)."""
        return 1 / (1 + ratio)


@dataclass(frozen=True)
class LogNoise(Schedule):
    """α = 1/√(s² + σ_d²), t = log(s)/4: EDM's preconditioning as a schedule (Karras et al. 2022, Table 1).

    The network's input α y has deviation one at every level.

    Args:
        sigma_data: σ_d, the standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.sigma_data < math.inf, "need a positive standard deviation", sigma_data=self.sigma_data)

    def ratio(self, t: Tensor) -> Tensor:
        """s = e^(4t)."""
        return torch.exp(4 * t)

    def time(self, ratio: Tensor) -> Tensor:
        """t = log(s)/4."""
        return ratio.log() / 4

    def alpha_of(self, ratio: Tensor) -> Tensor:
        """α = 1/√(s² + σ_d²)."""
        return torch.rsqrt(ratio**2 + self.sigma_data**2)


@dataclass(frozen=True, eq=False)
class DiscreteBetas(_VariancePreserving):
    """ᾱ_i = Π_{j≤i}(1−β_j) at time index i = 0…N−1; between indices log s is linear in t (DDPM, Ho et al. 2020).

    Args:
        betas: (N,) values in (0, 1), N ≥ 2.
    """

    betas: Tensor
    _log_ratio: Tensor = field(init=False, repr=False)
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise InputError(f"betas of shape {tuple(betas.shape)}: need at least two values, each inside (0, 1)")
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "_log_ratio", torch.expm1(-log_alpha_bar).log() / 2)

    def __repr__(self) -> str:
        """The number of indices, and the ratios at both ends."""
        low, high = self._log_ratio[[0, -1]].exp().tolist()
        return f"DiscreteBetas({len(self.betas)} indices, σ/α from {low:.4g} to {high:.4g})"

    @classmethod
    def scaled_linear(cls, n: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> "DiscreteBetas":
        """√β linear in i: the latent-diffusion schedule (Rombach et al. 2022)."""
        return cls(torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64) ** 2)

    @classmethod
    def linear(cls, n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "DiscreteBetas":
        """β linear in i: the DDPM schedule."""
        return cls(torch.linspace(beta_start, beta_end, n, dtype=torch.float64))

    def ratio(self, t: Tensor) -> Tensor:
        """Log s interpolated linearly at t ∈ [0, N−1]; clamped outside."""
        table = self._table(t.device)
        position = t.to(torch.float64).clamp(0, len(table) - 1)
        low = position.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(_at(table, low), _at(table, low + 1), position - low).exp().to(_floating(t))

    def time(self, ratio: Tensor) -> Tensor:
        """The (fractional) index at which log s is reached; clamped to [0, N−1]."""
        table = self._table(ratio.device)
        target = ratio.to(torch.float64).log()
        low = (torch.searchsorted(table, target.contiguous()) - 1).clamp(0, len(table) - 2)
        below = _at(table, low)
        position = low + (target - below) / (_at(table, low + 1) - below)
        return position.clamp(0, len(table) - 1).to(_floating(ratio))

    def _table(self, device: torch.device) -> Tensor:
        """Log s at every index, copied to a device once: a copy at every call would make the host wait at every call."""
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = self._log_ratio.to(device)
        return self._copies[device]


def _floating(t: Tensor) -> torch.dtype:
    return t.dtype if t.is_floating_point() else torch.float64


def _at(table: Tensor, index: Tensor) -> Tensor:
    """table[index]; an index of no dimension, in brackets, would be read by the host."""
    return table.index_select(0, index.reshape(-1)).reshape(index.shape)
