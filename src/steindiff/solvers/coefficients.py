"""Formulas that several solvers share. A coefficient is a float or a 0-dim float64, so it never changes the state's dtype."""

import math
from collections.abc import Callable, Sequence
from functools import cache, reduce

import numpy as np
import torch
from torch import Tensor


def ddim(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x' = r x + (1−r) D, r = σ'/σ: exact where D is constant over the step (Song et al. 2021, DDIM)."""
    r = sigma_next / sigma
    return r * x + (1 - r) * denoised


def noise_of(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """ε-hat = (x − D)/σ, which is also dy/dσ."""
    return (x - denoised) / sigma


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


@cache
def _gauss_legendre(points: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def lagrange_integrals(
    nodes: Sequence[float], start: float, end: float, variable: Callable[[Tensor], Tensor], points: int = 48
) -> tuple[float, ...]:
    """w_j = ∫_start^end ℓ_j(s(σ)) dσ, where ℓ_j is the Lagrange basis of the noise levels `nodes` in the variable s(σ).

    Gauss–Legendre quadrature runs in log σ, where every variable in use is smooth however long the step. In s itself the
    density dσ/ds of the VP time has a singularity at s = 0, next to the steps at low noise.
    """
    g, w = _gauss_legendre(points)
    half = math.log(end / start) / 2
    sigma = start * torch.exp(half * (1 + g))
    mass = half * w * sigma
    s = variable(torch.cat([sigma, sigma.new_tensor(nodes)]))
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
