"""Formulas several solvers share. Coefficients are 0-dim float64: they never change the dtype of the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["combine", "ddim", "lagrange_integrals", "noise_of"]


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


@cache
def _gauss_legendre(points: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return tuple(nodes), tuple(weights)


def lagrange_integrals(
    nodes: Sequence[Tensor], start: Tensor, end: Tensor, density: Callable[[Tensor], Tensor], points: int = 24
) -> list[Tensor]:
    """w_j = ∫_start^end ℓ_j(s) density(s) ds, ℓ_j the Lagrange basis of `nodes`, by Gauss–Legendre quadrature.

    Exact for polynomial densities of degree ≤ 2·points − len(nodes); all arguments and results 0-dim.
    """
    g, w = (torch.tensor(z, dtype=start.dtype, device=start.device) for z in _gauss_legendre(points))
    half = (end - start) / 2
    s = start + half * (1 + g)
    mass = half * w * density(s)
    integrals = []
    for j, node in enumerate(nodes):
        basis = torch.ones_like(s)
        for i, other in enumerate(nodes):
            if i != j:
                basis = basis * (s - other) / (node - other)
        integrals.append((mass * basis).sum())
    return integrals
