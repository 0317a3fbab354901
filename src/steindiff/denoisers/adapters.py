"""Adapters: a denoiser of a network that predicts ε, v, x0 or a flow's velocity, or is EDM's F, under some schedule."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.arguments import check_callable
from steindiff.denoisers.base import Denoiser, Network, expand, wide
from steindiff.denoisers.stated import check_schedule, layers
from steindiff.errors import require, require_numbers
from steindiff.schedules import LogNoise, Schedule


@dataclass(frozen=True, eq=False)
class Adapter(ABC):
    """D(y, s): x = α y, t = t(s), prediction F(x, t), then x0-hat by the parametrisation's formula.

    Args:
        network: F(x, t); bind text, class labels and the like with `functools.partial`.
        schedule: maps s = σ/α to the network's time and to α.
        dtype: what the network computes in; inputs are cast to it, and its output back to the state's dtype.
    """

    network: Network
    schedule: Schedule
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_callable(self.network, "network", "F(x, t)")
        check_schedule(self.schedule)
        real = self.dtype is None or (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point)
        require(real, "need a dtype of real floating-point numbers, or None for the state's", dtype=self.dtype)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x0-hat, (B, *event) in the dtype of x; sigma: (B,) or ()."""
        s = wide(sigma, x)
        alpha = self.schedule.alpha_of(s)
        a, b = (expand(z, x).to(x.dtype) for z in (alpha, alpha * s))
        inner = self.dtype or x.dtype
        t = self.schedule.time(s).to(torch.float32 if inner.itemsize < 4 else inner).expand(x.shape[0])
        prediction = self.network((a * x).to(inner), t).to(x.dtype)
        return self._denoised(prediction, a * x, a, b)

    @abstractmethod
    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x0-hat from the prediction at x = α x* + σ ε, all in the model's coordinates."""


class FromEps(Adapter):
    """Noise prediction: x0-hat = (x − σ ε̂)/α (Ho et al. 2020)."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * prediction) / alpha


class FromV(Adapter):
    """Velocity prediction, v = α ε − σ x*: x0-hat = (α x − σ v̂)/(α² + σ²) (Salimans & Ho 2022)."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)


class FromX0(Adapter):
    """Data prediction: x0-hat is the prediction itself."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return prediction


class FromFlow(Adapter):
    """Flow-matching velocity, u = ε − x*: x0-hat = (x − σ û)/(α + σ) (Lipman et al. 2023)."""

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * prediction) / (alpha + sigma)


@dataclass(frozen=True, eq=False)
class FromEDM(Adapter):
    """EDM's output F: x0-hat = c_skip y ± c_out F, c_skip = σ_d² α², c_out = σ_d σ, α = 1/√(s² + σ_d²) (Karras et al. 2022).

    Args:
        schedule: says σ_d.
        sign: 1, as published, or −1 for a network that was trained as one of v.
    """

    schedule: LogNoise
    dtype: torch.dtype | None = None
    sign: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.schedule, LogNoise), "need LogNoise, which says σ_d", schedule=self.schedule)
        require_numbers(sign=self.sign)
        require(abs(self.sign) == 1, "choose 1 or -1", sign=self.sign)

    def _denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        data = self.schedule.sigma_data
        return data**2 * alpha * x + self.sign * data * sigma * prediction


def prediction_of(denoiser: Denoiser) -> str | None:
    """What the network predicts, by the name of the adapter around it, such as FromEps; None where no layer is an adapter."""
    return next((type(layer).__name__ for layer in layers(denoiser) if isinstance(layer, Adapter)), None)
