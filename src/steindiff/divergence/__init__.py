"""Divergence of a map g: (B, *event) → (B, *event), sample by sample: ∇·g = tr ∂g/∂x.

Hutchinson: E[vᵀ (∂g/∂x) v] = ∇·g for any v with E[vvᵀ] = I. The product comes from forward mode (JVP), reverse mode (VJP)
or a finite difference. Hutch++ takes the trace on a sketched range exactly and estimates the rest. One call of an estimator
also returns g's own value, so that the primal evaluation is shared.
"""

from steindiff.divergence.choosing import Choice, choose
from steindiff.divergence.estimators import Estimate, Estimator, Exact, Hutchinson, HutchPlusPlus, Method
from steindiff.divergence.products import Contract, Map, dot

__all__ = [
    "Choice", "Contract", "Estimate", "Estimator", "Exact", "HutchPlusPlus", "Hutchinson", "Map", "Method", "choose", "dot",
]  # fmt: skip
