"""Formulas that several solvers share. A coefficient is a float of the host, so that it costs no tensor operation."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import cache, reduce, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steindiff.schedules import VPLinear

Array = NDArray[np.float64]
_VP = VPLinear()
_MOST = 4096
P = ParamSpec("P")
A = TypeVar("A")


def kept(make: Callable[P, A]) -> Callable[P, A]:
    """The same function, with its latest values kept: coefficients of a step, which take longer than a step of a small state.

    A compiler goes through a table that it can look into, and not through functools.lru_cache.
    """
    known: dict[Hashable, A] = {}

    @wraps(make)
    def find(*args: P.args, **kwargs: P.kwargs) -> A:
        key = (args, *kwargs.items()) if kwargs else args
        found = known.get(key)
        if found is None:
            if len(known) >= _MOST:
                known.clear()
            found = known[key] = make(*args, **kwargs)
        return found

    return find


def ddim(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x' = r x + (1−r) D, r = σ'/σ, in one pass: exact where D is constant over the step (Song et al. 2021, DDIM)."""
    return torch.lerp(x, denoised, 1 - sigma_next / sigma)


def times(a: float, x: Tensor) -> Tensor:
    """A x. Torch makes a tensor of a host number at each product, which takes longer than a small product: it is kept."""
    return x * (a if torch.compiler.is_compiling() else _number(a, x.dtype))


@kept
def _number(a: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(a, dtype=dtype)


def transformed() -> bool:
    """Whether torch.func batches or differentiates this call: a batched value cannot be added in place to a plain tensor."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def combine(weights: Sequence[Tensor | float], values: Sequence[Tensor]) -> Tensor:
    """Σ_j w_j v_j."""
    return reduce(torch.add, (w * v for w, v in zip(weights, values, strict=True)))


def phi(h: float, count: int = 2) -> tuple[float, ...]:
    """φ_k = ∫₀¹ h e^(−h(1−s)) s^k ds for k = 0 … count: the integrals of e^(τ−λ') ((τ−λ)/h)^k over a step h in λ.

    The recursion φ_k = 1 − k φ_{k−1}/h cancels for small h. Below h = 0.1 the power series Σ_j (−1)^j h^(j+1) k!/(k+j+1)!
    is used instead; its first 12 terms give full float64 accuracy.
    """
    values = [-math.expm1(-h)]
    for k in range(1, count + 1):
        if h >= 0.1:
            values.append(1 - k * values[-1] / h)
            continue
        series, term = 0.0, h / (k + 1)
        for j in range(12):
            series += term
            term *= -h / (k + j + 2)
        values.append(series)
    return tuple(values)


def vp_time(sigma: Array) -> Array:
    """The time of `VPLinear` at these levels, on the host: t = 2B/(β₀ + √(β₀² + 2(β₁−β₀)B)), B = log(1+σ²)."""
    low, rise, b = _VP.beta_min, _VP.beta_max - _VP.beta_min, np.log1p(sigma**2)
    time: Array = 2 * b / (low + np.sqrt(low**2 + 2 * rise * b))
    return time


def vp_level(time: float) -> float:
    """The level at this time, σ = √(e^B − 1), B = (β₁−β₀)t²/2 + β₀t."""
    return math.sqrt(math.expm1((_VP.beta_max - _VP.beta_min) * time**2 / 2 + _VP.beta_min * time))


@cache
def _gauss_legendre(points: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return nodes, weights


def lagrange_integrals(
    nodes: Sequence[float], start: float, end: float, variable: Callable[[Array], Array], points: int = 48
) -> tuple[float, ...]:
    """w_j = ∫_start^end ℓ_j(s(σ)) dσ, where ℓ_j is the Lagrange basis of the noise levels `nodes` in the variable s(σ).

    Gauss–Legendre quadrature runs in log σ, where every variable in use is smooth however long the step. In s itself the
    density dσ/ds of the VP time has a singularity at s = 0, next to the steps at low noise.
    """
    g, w = _gauss_legendre(points)
    half = math.log(end / start) / 2
    sigma = start * np.exp(half * (1 + g))
    mass = half * w * sigma
    s = variable(np.concatenate([sigma, nodes]))
    at = s[points:].tolist()
    offsets = [s[:points] - node for node in at]
    integrals = []
    for j, node in enumerate(at):
        basis = mass
        for i, other in enumerate(at):
            if i != j:
                basis = basis * offsets[i] / (node - other)
        integrals.append(float(basis.sum()))
    return tuple(integrals)
