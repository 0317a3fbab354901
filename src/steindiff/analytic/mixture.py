"""Exact models: Gaussian mixtures, whose denoiser D(x, σ) = E[x* | x* + σ ε = x] is known in closed form.

For x* ~ Σ_k w_k N(μ_k, Σ_k) and x = x* + σ ε, with p_k the responsibilities and m_k the posterior mean in component k,

    p_k ∝ w_k N(x; μ_k, Σ_k + σ²),    m_k = μ_k + Σ_k (Σ_k + σ²)⁻¹ (x − μ_k),
    D = Σ_k p_k m_k,                  ∇·D = Σ_k p_k tr Σ_k(Σ_k + σ²)⁻¹ + Σ_k p_k ‖m_k − D‖²/σ².

`ExactModel` is written once, over any family of components; `laws` has the public ones.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import torch
from torch import Tensor

from steindiff.analytic.checks import check_flow, check_state, noise_level
from steindiff.analytic.components import Components, Noisy
from steindiff.analytic.integrate import Flow, integrate
from steindiff.denoisers import expand
from steindiff.errors import InputError, require_whole
from steindiff.schedules import VE

Model = TypeVar("Model", bound="ExactModel")

BUDGET = 2**21  # elements of one (rows, K, d) array: larger ones leave the cache (measured at K = 16, d = 3072)


@dataclass(frozen=True, eq=False)
class _Posterior:
    """The posterior over components for centred rows x (b, d): logits = log w_k N(x; μ_k, Σ_k + σ²) − shift."""

    noisy: Noisy
    x: Tensor
    coordinates: Tensor
    logits: Tensor
    shift: Tensor

    @property
    def p(self) -> Tensor:
        """Responsibilities, (b, K)."""
        return self.logits.softmax(-1)

    def mean(self) -> Tensor:
        """Σ_k p_k m_k, (b, d)."""
        return self.noisy.mean(self.x, self.coordinates, self.p)

    def whitened(self) -> Tensor:
        """Σ_k p_k (Σ_k + σ²)⁻¹ (x − μ_k) = (x − D)/σ², (b, d)."""
        return self.noisy.whitened(self.x, self.coordinates, self.p)

    def log_density(self) -> Tensor:
        """log Σ_k w_k N(x; μ_k, Σ_k + σ²), (b,)."""
        return self.logits.logsumexp(-1) + (self.shift - 0.5 * self.x.shape[-1] * math.log(2 * math.pi))

    def trace_and_spread(self) -> Tensor:
        """Σ_k p_k tr A_k and Σ_k p_k ‖m_k − D‖², (b, 2)."""
        p, m = self.p, self.noisy.means(self.x, self.coordinates)
        center = (p[:, None] @ m)[:, 0]
        return torch.stack([(p * self.noisy.traces()).sum(-1), (p * (m - center[:, None]).square().sum(-1)).sum(-1)], -1)


class ExactModel:
    """x* ~ Σ_k w_k N(μ_k, Σ_k) ∈ ℝ^event, over any family of `Components`; an instance is itself a `Denoiser`, and immutable.

    In VE coordinates x = x* + σ ε. Throughout, x has shape (B, *event) in the model's dtype; σ is a float, a () or a (B,)
    tensor, in the units of x; every method is differentiable with respect to x in both modes. A wrong shape, dtype, device
    or σ raises `InputError`, and so does σ = 0 where a method needs a density that the law does not have.

    Args:
        weights: w_k > 0 summing to one, (K,).
        means: μ_k, (K, *event).
        components: builds the family from the centred means, (K, d).
    """

    schedule: Final = VE()
    forwards: Final = 1

    def __init__(self, weights: Tensor, means: Tensor, components: Callable[[Tensor], Components]) -> None:
        self.weights = weights / weights.sum()
        self.means = means
        # Centred coordinates: a common offset of all means must not cost float32 its digits.
        self._center = self.weights @ means.flatten(1)
        self._components = components(means.flatten(1) - self._center)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.means.shape[1:])

    @property
    def dim(self) -> int:
        """d, the number of coordinates of one sample."""
        return math.prod(self.event_shape)

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        return self.means.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.means.device

    @property
    def mean(self) -> Tensor:
        """E x* = Σ_k w_k μ_k, (*event)."""
        return self._center.reshape(self.event_shape)

    @property
    def sigma_data(self) -> float:
        """The standard deviation of a coordinate, √(E‖x* − E x*‖²/d)."""
        about = self._components.means.square().sum(-1) + self._components.traces()  # centred: an offset costs no digits
        return math.sqrt(float((self.weights * about).sum()) / self.dim)

    def identity(self) -> dict[str, Tensor]:
        """What tells this law from others: weights, means, and tr Σ_k to three digits.

        Further digits of a covariance depend on the machine, where the law is made of data.
        """
        traces = torch.tensor([float(f"{trace:.2e}") for trace in self._components.traces().tolist()])
        return {"weights": self.weights, "means": self.means, "traces": traces}

    def second_moment(self) -> Tensor:
        """E‖x*‖² = Σ_k w_k (‖μ_k‖² + tr Σ_k), ()."""
        return self.weights @ (self.means.flatten(1).square().sum(-1) + self._components.traces())

    def to(self: Model, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Model:
        """Move the law to another dtype (float32 or float64) or device; parameters are rounded, not refitted.

        Raises InputError for any other dtype.
        """
        if dtype not in (None, torch.float32, torch.float64):
            raise InputError(f"exact models are float32 or float64, not {dtype}: pass one of these")
        moved = copy.copy(self)
        vars(moved).update({name: part.to(dtype=dtype, device=device) for name, part in vars(self).items()})
        return moved

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws of x*, (n, *event): a component, then its Gaussian, on `generator`'s device.

        Raises InputError for n below 1.
        """
        require_whole(1, n=n)
        device = self.device if generator is None else generator.device
        labels = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator).to(self.device)
        x = self.means.new_empty(n, self.dim)
        for k in range(len(self.weights)):
            rows = (labels == k).nonzero()[:, 0]
            x[rows] = self._components.draw(k, len(rows), generator)
        return (x + self._center).reshape(n, *self.event_shape)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D(x, σ) = Σ_k p_k m_k, (B, *event); D(x, 0) = x. The model as a function is the same."""
        s = self._noise(x, sigma)
        d = self._map(_Posterior.mean, x, torch.where(s == 0, 1.0, s)).reshape(x.shape) + self.mean  # at 0 it is chosen below
        return torch.where(expand(s, x) == 0, x, d)

    __call__ = denoise

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """∇ log p_σ(x) = −Σ_k p_k (Σ_k + σ²)⁻¹ (x − μ_k) = (D − x)/σ², (B, *event), without that difference's cancellation."""
        return -self._map(_Posterior.whitened, x, self._noise(x, sigma, density=True)).reshape(x.shape)

    def responsibilities(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """p_k(x) = w_k N(x; μ_k, Σ_k + σ²)/p_σ(x), (B, K)."""
        return self._map(lambda posterior: posterior.p, x, self._noise(x, sigma, density=True))

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p_σ(x) = log Σ_k w_k N(x; μ_k, Σ_k + σ²), (B,), in nats; σ = 0 gives the law itself.

        In float32 the sum of d terms carries its own rounding, about 1e-7 of |log p|.
        """
        return self._map(_Posterior.log_density, x, self._noise(x, sigma, density=True))

    def divergence(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """∇·D = Σ_k p_k tr Σ_k(Σ_k + σ²)⁻¹ + Σ_k p_k ‖m_k − D‖²/σ², (B,); d at σ = 0."""
        sigma = self._noise(x, sigma)
        s = torch.where(sigma == 0, 1.0, sigma)  # at 0 the value is chosen below
        trace, spread = self._map(_Posterior.trace_and_spread, x, s).unbind(-1)
        return torch.where(sigma == 0, self.dim, trace + spread / s.square().to(x.dtype))

    def posterior_trace(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """tr Cov[x* | x] = σ² ∇·D(x, σ), (B,), in squared units of x."""
        return self.divergence(x, sigma) * torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square()

    def flow(self, x: Tensor, sigma_from: float, sigma_to: float, tol: float = 1e-6) -> Tensor:
        """x carried along dy/dσ = (y − D(y, σ))/σ from σ_from ≥ 0 to σ_to ≥ 0, (B, *event), in either direction; 0 is the data.

        `tol` > 0 is the largest estimated RMS error per coordinate over the batch, in units of x.

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

    def flow_with_error(self, x: Tensor, sigma_from: float, sigma_to: float, tol: float = 1e-6, max_steps: int = 2048) -> Flow:
        """`flow` with its estimated error, sample by sample; it never raises for a missed tolerance.

        Integrates dy/d log σ = y − D by doubled steps of high order (`integrate`), sample by sample until each is within
        tol, its error has met the dtype's rounding floor, or max_steps is reached; the error is stated in every case.
        σ = 0 is replaced by ε = min(tol, other end)/2 and its cost added to the error. A flow to 0 ends with D(y, ε):
        at most 0.3 ε off for a Gaussian of any width. A flow from 0 starts with y: ε²/(2 λ_min) off, relatively. Too few
        max_steps for an error estimate are refused.
        """
        check_flow(sigma_from, sigma_to, tol)
        sigma_from, sigma_to = float(sigma_from), float(sigma_to)
        require_whole(1, max_steps=max_steps)
        self._noise(x, sigma_from, density=sigma_from == 0)
        return self._flow(x, sigma_from, sigma_to, tol, max_steps)

    def _flow(self, x: Tensor, sigma_from: float, sigma_to: float, tol: float, max_steps: int) -> Flow:
        if sigma_from == sigma_to or not len(x):
            return Flow.of(x.clone(), x.new_zeros(len(x)), 0)
        tiny = min(tol, max(sigma_from, sigma_to)) / 2
        start, stop = max(sigma_from, tiny), max(sigma_to, tiny)
        y, error, steps = integrate(self._velocity(), x.flatten(1) - self._center, start, stop, tol, max_steps)
        if sigma_from == 0:
            error = error + y.detach().square().mean(-1).sqrt() * tiny**2 / (2 * self._components.least_variance())
        y = (y + self._center).reshape(x.shape)
        return Flow.of(y, error, steps) if sigma_to > 0 else Flow.of(self.denoise(y, tiny), error + 0.3 * tiny, steps)

    def _velocity(self) -> Callable[[Tensor, float], Tensor]:
        """(y, σ) -> y − D on centred rows. Stages share nodes, so the last few σ are kept for the length of one flow."""

        @lru_cache(maxsize=4)
        def at(sigma: float) -> Noisy:
            return self._components.at(noise_level(sigma, self.means))

        def velocity(y: Tensor, sigma: float) -> Tensor:
            parts = [self._posterior(at(sigma), rows).whitened() for rows in y.split(self._rows())]
            return torch.cat(parts) * sigma**2

        return velocity

    def _noise(self, x: Tensor, sigma: float | Tensor, density: bool = False) -> Tensor:
        """The checked σ, () or (B,); where a density is needed, σ = 0 is refused to singular components."""
        check_state(x, self.event_shape, self.dtype, self.device)
        s = noise_level(sigma, x)
        if density and s.device.type == "cpu" and bool((s == 0).any()) and self._components.least_variance() == 0:
            raise InputError("sigma = 0 but a covariance is singular: the law has no density; use sigma > 0")
        return s

    def _rows(self) -> int:
        return max(1, BUDGET // self.means.numel())

    def _posterior(self, noisy: Noisy, x: Tensor) -> _Posterior:
        coordinates, q = noisy.project(x)
        # log det is of order d log σ: it is added in float64 and only differences between components meet float32.
        scale = self.weights.log() + noisy.log_scale
        shift = scale.max(-1, keepdim=True).values
        return _Posterior(noisy, x, coordinates, (scale - shift).to(x.dtype) - q / 2, shift[:, 0].to(x.dtype))

    def _map(self, f: Callable[[_Posterior], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        """f of the posterior of every row of x (B, *event), in chunks that fit the cache."""
        if sigma.ndim and not self._components.per_sample:
            return self._grouped(f, x, sigma)
        rows, size = x.flatten(1) - self._center, self._rows()
        if not sigma.ndim:
            noisy = self._components.at(sigma)
            return torch.cat([f(self._posterior(noisy, part)) for part in rows.split(size)])
        pairs = zip(rows.split(size), sigma.split(size), strict=True)
        return torch.cat([f(self._posterior(self._components.at(s), part)) for part, s in pairs])

    def _grouped(self, f: Callable[[_Posterior], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        """`_map` with one σ at a time; the groups are put back in the order of the batch."""
        if not len(sigma):
            return self._map(f, x, sigma.new_ones(()))
        values, group = sigma.unique(return_inverse=True)
        rows = [(group == i).nonzero()[:, 0] for i in range(len(values))]
        parts = [self._map(f, x[row], value) for row, value in zip(rows, values, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]
