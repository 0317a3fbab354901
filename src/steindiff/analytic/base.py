"""Exact models: laws of x* whose denoiser D(x, σ) = E[x* | x* + σ ε = x] is known in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final, TypeVar

import torch
from torch import Tensor

from steindiff.analytic.integrate import Flow
from steindiff.errors import InputError
from steindiff.schedules import VE

__all__ = ["ExactModel"]

Model = TypeVar("Model", bound="ExactModel")


class ExactModel(ABC):
    """A law of x* ∈ ℝ^event with an exact denoiser; an instance is itself a `Denoiser`.

    In VE coordinates y = x* + σ ε. Throughout, x has shape (B, *event) in the model's dtype; σ is a float, a () or a (B,)
    tensor, in the units of x; every method is differentiable with respect to x in both modes. A wrong shape, dtype, device
    or σ raises `InputError`.
    """

    schedule: Final = VE()
    forwards: Final = 1

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def dim(self) -> int:
        """d, the number of coordinates of one sample."""
        return math.prod(self.event_shape)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """float32 or float64."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the parameters are."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E x*, (*event)."""

    @abstractmethod
    def second_moment(self) -> Tensor:
        """E‖x*‖², ()."""

    @abstractmethod
    def to(self: Model, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Model:
        """The same law in another dtype (float32 or float64) or on another device."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws of x*, (n, *event); random numbers come from `generator`'s device."""

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D(x, σ) = E[x* | x], (B, *event); D(x, 0) = x."""

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D(x, σ): `denoise`."""
        return self.denoise(x, sigma)

    @abstractmethod
    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """∇ log p_σ(x) = (D(x, σ) − x)/σ², (B, *event), without that difference's cancellation at small σ."""

    @abstractmethod
    def divergence(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """∇·D(x, σ), (B,); d at σ = 0."""

    def posterior_trace(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """tr Cov[x* | x] = σ² ∇·D(x, σ), (B,), in squared units of x."""
        divergence = self.divergence(x, sigma)
        return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square() * divergence

    @abstractmethod
    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p_σ(x) of the noised law, (B,), in nats; σ = 0 is the law itself and needs a density.

        In float32 the sum of d terms carries its own rounding, about 1e-7 of |log p|.
        """

    def flow(self, x: Tensor, sigma_from: float, sigma_to: float, tol: float = 1e-6) -> Tensor:
        """x carried along dy/dσ = (y − D(y, σ))/σ from σ_from to σ_to, (B, *event), in either direction.

        Args:
            x: the state at σ_from, (B, *event).
            sigma_from: where it starts, >= 0.
            sigma_to: where it ends, >= 0; 0 is the data.
            tol: the largest estimated RMS error per coordinate over the batch, in units of x.

        Raises:
            InputError: tol is out of reach; the message states the error reached. `flow_with_error` returns it instead.
        """
        result = self.flow_with_error(x, sigma_from, sigma_to, tol)
        if not result.error <= tol:
            raise InputError(
                f"flow reached an RMS error of {result.error:.2g} in {result.steps} steps; tol is {tol:g}: raise tol, or use "
                "model.to(torch.float64) (float32 stops near 1e-5), or flow_with_error with larger max_steps"
            )
        return result.x

    @abstractmethod
    def flow_with_error(self, x: Tensor, sigma_from: float, sigma_to: float, tol: float = 1e-6, max_steps: int = 2048) -> Flow:
        """`flow` with its estimated errors and the number of steps; never raises for a missed tolerance.

        Args:
            x: the state at σ_from, (B, *event).
            sigma_from: where it starts, >= 0.
            sigma_to: where it ends, >= 0.
            tol: the RMS error per coordinate at which a sample is done, in units of x.
            max_steps: the largest number of steps, 7 evaluations each.

        Raises:
            InputError: a negative or non-finite σ, tol <= 0, max_steps too few for an error estimate.
        """
