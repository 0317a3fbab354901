"""Component weights: a sampler that prefers some modes of an exact mixture shows it here.

    p̂_k = (1/n) Σ_i p_k(x_i),    p_k(x) ∝ w_k N(x; μ_k, Σ_k + σ²),    TV = ½ Σ_k |p̂_k − w_k|.

E p_k(X) = w_k where X follows the law itself, whether components overlap or not, so the responsibilities need no threshold.
Their mean has the standard error s_k/√n, and a sample's share in TV is ½ Σ_k sign(p̂_k − w_k) p_k(x_i). TV of samples of the law
itself is not 0 but about ½ Σ_k √(2/π) s_k/√n, the noise floor, where s_k² ≤ w_k(1 − w_k), equal if components lie apart.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.analytic import ExactModel
from steindiff.arguments import check_samples
from steindiff.errors import InputError
from steindiff.metrics.values import Shares, Value


@dataclass(frozen=True, eq=False)
class ComponentWeights:
    """Responsibilities p_k(x_i) of samples, (n, K) float64, beside the weights w_k they should have on average."""

    responsibilities: Tensor
    weights: Tensor

    @property
    def errors(self) -> Tensor:
        """p̂_k − w_k, (K,)."""
        return self.responsibilities.mean(0) - self.weights

    @property
    def values(self) -> tuple[Value, ...]:
        """p̂_k with its standard error, component by component."""
        return tuple(map(Value, self.responsibilities.mean(0).tolist(), self._standard_errors.tolist()))

    @property
    def z(self) -> Tensor:
        """(p̂_k − w_k)/se_k, (K,): about standard normal for samples of the law; −∞ where none is near component k."""
        return self.errors / self._standard_errors

    @property
    def total_variation(self) -> Shares:
        """½ Σ_k |p̂_k − w_k|; of two runs from the same noise, `.minus` compares."""
        shares = self.responsibilities @ self.errors.sign() / 2
        return Shares(float(self.errors.abs().sum() / 2), shares, shares.new_zeros(2))  # the law itself has no error

    @property
    def floor(self) -> float:
        """An upper bound of the mean TV of as many samples of the law itself: ½ Σ_k √(2/π) √(w_k(1 − w_k)/n)."""
        spread = (self.weights * (1 - self.weights)).sqrt().sum()
        return float(spread) / math.sqrt(2 * math.pi * len(self.responsibilities))

    @property
    def _standard_errors(self) -> Tensor:
        se: Tensor = self.responsibilities.std(0) / len(self.responsibilities) ** 0.5
        return se


def component_weights(x: Tensor, law: ExactModel, sigma: float = 0.0) -> ComponentWeights:
    """Responsibilities of samples x, (n, *event) of any dtype, under an exact mixture; sigma: the noise left in them.

    Raises InputError for fewer than two samples, another shape than the law's, and sigma = 0 for a law without a density.
    """
    if not isinstance(law, ExactModel):
        raise InputError(f"the law is {type(law).__name__}: need an exact mixture of steindiff.analytic")
    wide = law.to(torch.float64)
    return ComponentWeights(wide.responsibilities(check_samples(x, 2).to(wide.device, torch.float64), sigma), wide.weights)
