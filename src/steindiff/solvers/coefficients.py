"""Formulas several solvers share. Coefficients are 0-dim float64: they never change the dtype of the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["combine", "ddim", "lagrange_integrals", "noise_of", "phi"]


def ddim(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x' = r x + (1−r) D, r = σ'/σ: exact where D is constant over the step (Song et al. 2021, DDIM)."""
    r = sigma_next / sigma
    return r * x + (1 - r) * denoised


def noise_of(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """ε-hat = (x − D)/σ, which is also dy/dσ."""
    return (x - denoised) / sigma


def combine(weights: Sequence[Tensor | float], values: Sequence[Tensor]) -> Tensor:
    """Σ_j w_j v_j."""
    total = weights[0] * values[0]
    for w, v in zip(weights[1:], values[1:], strict=True):
        total = total + w * v
    return total


def phi(h: Tensor, count: int = 2) -> tuple[Tensor, ...]:
    """φ_k = ∫₀¹ h e^(−h(1−s)) s^k ds for k = 0 … count: the integrals of e^(τ−λ') ((τ−λ)/h)^k over a step h in λ.

    The recursion φ_k = 1 − k φ_{k−1}/h cancels for small h; below h = 0.1 the power series Σ_j (−1)^j h^(j+1) k!/(k+j+1)!
    is used instead (12 terms: full float64 accuracy).
    """
    values = [-torch.expm1(-h)]
    small = h < 0.1
    for k in range(1, count + 1):
        series, term = torch.zeros_like(h), h / (k + 1)
        for j in range(12):
            series = series + term
            term = -term * h / (k + j + 2)
        values.append(torch.where(small, series, 1 - k * values[-1] / h))
    return tuple(values)


@cache
def _gauss_legendre(points: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return tuple(nodes), tuple(weights)


def lagrange_integrals(
    nodes: Sequence[Tensor], start: Tensor, end: Tensor, variable: Callable[[Tensor], Tensor], points: int = 48
) -> list[Tensor]:
    """w_j = ∫_start^end ℓ_j(s(σ)) dσ, ℓ_j the Lagrange basis of the noise levels `nodes` in the variable s(σ).

    Gauss–Legendre quadrature in log σ, where every variable in use is smooth however long the step; in s itself the density
    dσ/ds of the VP time has a singularity at s = 0, next to the steps at low noise. All arguments and results are 0-dim.
    """
    g, w = (torch.tensor(z, dtype=start.dtype, device=start.device) for z in _gauss_legendre(points))
    half = (end / start).log() / 2
    sigma = start * torch.exp(half * (1 + g))
    mass = half * w * sigma
    s, at = variable(sigma), [variable(node) for node in nodes]
    integrals = []
    for j, node in enumerate(at):
        basis = torch.ones_like(s)
        for i, other in enumerate(at):
            if i != j:
                basis = basis * (s - other) / (node - other)
        integrals.append((mass * basis).sum())
    return integrals
