"""Denoisers: D(y, σ) ≈ E[x* | y = x* + σ ε] in VE coordinates, whatever the network predicts.

`Denoiser` is any callable `D(x, sigma)`, x: (B, *event), sigma: (B,) or (). The adapters turn a network that predicts
ε, v, x0 or a flow velocity under some schedule into one; guidance is a denoiser made of denoisers; `Counter` counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.schedules import VE, Schedule

__all__ = [
    "Counter",
    "Denoiser",
    "EpsilonScaled",
    "FromEps",
    "FromFlow",
    "FromV",
    "FromX0",
    "Guided",
    "Network",
    "TimeShifted",
    "expand",
    "forwards_per_call",
    "schedule_of",
]

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma) -> x0-hat; x: (B, *event) in VE coordinates, sigma: (B,) or ()."""

Network = Callable[[Tensor, Tensor], Tensor]
"""F(x, t) -> prediction; x in the model's own coordinates, t: (B,) in the schedule's time."""


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """σ of shape () or (B,) made broadcastable against x: (B, *event). Raises InputError on any other shape."""
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != x.shape[:1]:
        raise InputError(f"sigma of shape {tuple(sigma.shape)} for a batch of {x.shape[0]}: need () or ({x.shape[0]},)")
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, eq=False)
class _Adapter(ABC):
    """D(y, s): x = α y, t = t(s), prediction F(x, t), then x0-hat by the parametrisation's formula.

    Args:
        network: F(x, t); bind text, class labels and the like with `functools.partial`.
        schedule: maps s = σ/α to the network's time and to α.
        dtype: the network's own; inputs are cast to it and its output back to the state's.
    """

    network: Network
    schedule: Schedule
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma): x (B, *event) in VE coordinates, sigma (B,) or ()."""
        # Times are computed in float64: discrete schedules and small σ lose several digits in float32.
        s = torch.as_tensor(sigma, device=x.device)
        s = s if s.device.type == "mps" else s.to(torch.float64)
        alpha = self.schedule.alpha_of(s)
        a, b = (expand(z, x).to(x.dtype) for z in (alpha, alpha * s))
        inner = self.dtype or x.dtype
        t = self.schedule.time(s).to(torch.float32 if inner.itemsize < 4 else inner).expand(x.shape[0])
        prediction = self.network((a * x).to(inner), t).to(x.dtype)
        return self.denoised(prediction, a * x, a, b)

    @abstractmethod
    def denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x0-hat from the prediction at x = α x* + σ ε, all in the model's coordinates."""


class FromEps(_Adapter):
    """Noise prediction: x0-hat = (x − σ ε̂)/α (Ho et al. 2020)."""

    def denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(x − σ ε̂)/α."""
        return (x - sigma * prediction) / alpha


class FromV(_Adapter):
    """Velocity prediction, v = α ε − σ x*: x0-hat = (α x − σ v̂)/(α² + σ²) (Salimans & Ho 2022)."""

    def denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(α x − σ v̂)/(α² + σ²)."""
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)


class FromX0(_Adapter):
    """Data prediction: x0-hat is the prediction itself."""

    def denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x̂0."""
        return prediction


class FromFlow(_Adapter):
    """Flow-matching velocity, u = ε − x*: x0-hat = (x − σ û)/(α + σ) (Lipman et al. 2023)."""

    def denoised(self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(x − σ û)/(α + σ)."""
        return (x - sigma * prediction) / (alpha + sigma)


@dataclass(frozen=True, eq=False)
class Guided:
    """Classifier-free guidance: D = D_∅ + w (D_c − D_∅), a denoiser of denoisers (Ho & Salimans 2022).

    Args:
        conditional: D_c.
        unconditional: D_∅.
        scale: w; 1 is the conditional model, 0 the unconditional one.

    One call costs two network evaluations; `stats.forward_equivalents` counts both.
    """

    conditional: Denoiser
    unconditional: Denoiser
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_∅ + w (D_c − D_∅)."""
        unconditional = self.unconditional(x, sigma)
        return unconditional + self.scale * (self.conditional(x, sigma) - unconditional)


@dataclass(frozen=True, eq=False)
class EpsilonScaled:
    """ε-scaling: ε̂ ← ε̂/b, hence D ← x + (D − x)/b, against exposure bias (Ning et al. 2024).

    Args:
        denoiser: D.
        b: 1.0048 in the paper for CIFAR-10 and 13 Euler steps; near 1, and it depends on solver and NFE.

    Raises:
        InputError: b ≤ 0.
    """

    denoiser: Denoiser
    b: float = 1.0048

    def __post_init__(self) -> None:
        if not 0 < self.b < float("inf"):
            raise InputError(f"b={self.b}: need a positive scale")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """X + (D − x)/b."""
        return torch.lerp(x, self.denoiser(x, sigma), 1 / self.b)


@dataclass(frozen=True, eq=False)
class TimeShifted:
    """The network is told another noise level than the state has: D(x, (1+ξ) σ) (time-shift sampling, Li et al. 2023).

    Args:
        denoiser: D.
        shift: ξ, relative; positive tells more noise than there is.

    Raises:
        InputError: shift ≤ −1.
    """

    denoiser: Denoiser
    shift: float

    def __post_init__(self) -> None:
        if not -1 < self.shift < float("inf"):
            raise InputError(f"shift={self.shift}: need a relative shift above -1")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, (1+ξ) σ)."""
        return self.denoiser(x, (1 + self.shift) * sigma)


class Counter:
    """Counts the calls of a denoiser: one call is one NFE. The only mutable object of a run.

    Example:
        >>> counter = Counter(lambda x, sigma: x / (1 + sigma**2))
        >>> _ = counter(torch.zeros(2, 3), torch.tensor(1.0))
        >>> counter.calls
        1
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma), counted."""
        self.calls += 1
        return self.inner(x, sigma)


def schedule_of(denoiser: Denoiser) -> Schedule:
    """The schedule whose α defines the model's own x; seen through partials, counters and guidance; VE for a plain callable."""
    match denoiser:
        case partial():
            return schedule_of(denoiser.func)
        case Counter():
            return schedule_of(denoiser.inner)
        case Guided():
            return schedule_of(denoiser.conditional)
        case EpsilonScaled() | TimeShifted():
            return schedule_of(denoiser.denoiser)
        case _Adapter():
            return denoiser.schedule
    return VE()


def forwards_per_call(denoiser: Denoiser) -> int:
    """Network forwards behind one call: 2 for guidance (nested guidance adds up), 1 otherwise."""
    match denoiser:
        case partial():
            return forwards_per_call(denoiser.func)
        case Counter():
            return forwards_per_call(denoiser.inner)
        case Guided():
            return forwards_per_call(denoiser.conditional) + forwards_per_call(denoiser.unconditional)
        case EpsilonScaled() | TimeShifted():
            return forwards_per_call(denoiser.denoiser)
    return 1
