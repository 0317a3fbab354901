"""Exact models: D(x, σ) = E[x* | x* + σ ε = x], its divergence, score, density and flow in closed form."""

from steindiff.analytic.integrate import Flow
from steindiff.analytic.laws import DiagonalMixture, FactorMixture, Gaussian, GaussianMixture
from steindiff.analytic.mixture import ExactModel

__all__ = ["DiagonalMixture", "ExactModel", "FactorMixture", "Flow", "Gaussian", "GaussianMixture"]
