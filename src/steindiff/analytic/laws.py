"""The public laws: mixtures of Gaussians whose covariances are full, low-rank plus diagonal, or diagonal."""

from typing import final

from torch import Tensor

from steindiff.analytic.checks import check_covariances, check_parameters, check_shape, check_weights
from steindiff.analytic.components import Dense, Diagonal, LowRank, wide
from steindiff.analytic.integrate import Flow
from steindiff.analytic.mixture import ExactModel
from steindiff.errors import InputError


@final
class FactorMixture(ExactModel):
    """A mixture of factor analysers: Σ_k = W_k W_kᵀ + diag(ψ_k), never formed.

    Woodbury's identity and the determinant lemma need one r × r Cholesky factor per component and σ; a call costs
    O(B K d r). A σ that differs between samples is treated one value at a time.

    Args:
        weights: w_k > 0 summing to one, (K,).
        means: μ_k, (K, *event).
        loadings: W_k, (K, d, r), in units of x.
        diagonal: ψ_k > 0, (K, d), in squared units of x.

    Example:
        >>> import torch
        >>> model = FactorMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2, 1), torch.ones(1, 2))
        >>> model.denoise(torch.tensor([[1.0, 1.0]]), 1.0)  # Σ has eigenvalue 3 along (1, 1): D = 3/4 x
        tensor([[0.7500, 0.7500]])
    """

    _components: LowRank

    def __init__(self, weights: Tensor, means: Tensor, loadings: Tensor, diagonal: Tensor) -> None:
        check_parameters(weights=weights, means=means, loadings=loadings, diagonal=diagonal)
        check_weights(weights, means)
        k, d = means.flatten(1).shape
        check_shape("loadings", loadings, (k, d, max(1, loadings.shape[-1] if loadings.ndim else 0)), "(K, d, r), r >= 1")
        check_shape("diagonal", diagonal, (k, d), "(K, d)")
        if (least := float(diagonal.min())) <= 0:
            raise InputError(f"the least diagonal variance is {least:g}: need > 0; add a small floor to it")
        super().__init__(weights, means, lambda centred: LowRank(centred, loadings.mT.contiguous(), diagonal))

    @property
    def loadings(self) -> Tensor:
        """W_k, (K, d, r)."""
        return self._components.loadings.mT

    @property
    def diagonal(self) -> Tensor:
        """ψ_k, (K, d)."""
        return self._components.diagonal


@final
class DiagonalMixture(ExactModel):
    """x* ~ Σ_k w_k N(μ_k, diag(v_k)); a call costs O(B K d), three products of matrices.

    A σ that differs between samples is treated one value at a time.

    Args:
        weights: w_k > 0 summing to one, (K,).
        means: μ_k, (K, *event).
        variances: v_k ≥ 0, (K, d), d = prod(event), in squared units of x.

    Example:
        >>> import torch
        >>> model = DiagonalMixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]))
        >>> model.denoise(torch.tensor([[1.0, 1.0]]), 1.0)  # v/(v + σ²) = 3/4 and 0
        tensor([[0.7500, 0.0000]])
    """

    _components: Diagonal

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        check_parameters(weights=weights, means=means, variances=variances)
        check_weights(weights, means)
        k, d = means.flatten(1).shape
        check_shape("variances", variances, (k, d), "(K, d)")
        if (least := float(variances.min())) < 0:
            raise InputError(f"the least variance is {least:g}: need ≥ 0; clamp it")
        super().__init__(weights, means, lambda centred: Diagonal(centred, variances))

    @property
    def variances(self) -> Tensor:
        """v_k, (K, d)."""
        return self._components.variances


class _DenseMixture(ExactModel):
    """A mixture whose covariances are diagonalised once, in float64."""

    _components: Dense

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        check_parameters(weights=weights, means=means, covariances=covariances)
        check_weights(weights, means)
        k, d = means.flatten(1).shape
        check_shape("covariances", covariances, (k, d, d), "(K, d, d)")
        check_covariances(covariances)
        super().__init__(weights, means, lambda centred: Dense.of(centred, covariances))


@final
class GaussianMixture(_DenseMixture):
    """x* ~ Σ_k w_k N(μ_k, Σ_k) with full covariances; a call costs O(B K d²).

    Args:
        weights: w_k > 0 summing to one, (K,).
        means: μ_k, (K, *event).
        covariances: Σ_k, symmetric positive semidefinite, (K, d, d), d = prod(event), in squared units of x.

    Example:
        >>> import torch
        >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1, 1))
        >>> model.denoise(torch.tensor([[1.0]]), 1.0)  # two points at ±1: D = tanh(x/σ²)
        tensor([[0.7616]])
    """

    @property
    def covariances(self) -> Tensor:
        """Σ_k, (K, d, d), rebuilt from its eigenvectors."""
        return self._components.covariances()


@final
class Gaussian(_DenseMixture):
    """x* ~ N(m, Σ) = N(m, Q diag(L) Qᵀ): D = m + Q L/(L + σ²) Qᵀ (x − m), and the flow in closed form.

    Args:
        mean: m, (*event).
        covariance: Σ, symmetric positive semidefinite, (d, d), d = prod(event), in squared units of x.

    Example:
        >>> import torch
        >>> model = Gaussian(torch.zeros(2), 3 * torch.eye(2))
        >>> model.flow(torch.ones(1, 2), 1.0, 0.0)  # √(3/4) x
        tensor([[0.8660, 0.8660]])
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        check_parameters(mean=mean, covariance=covariance)
        check_shape("covariance", covariance, (mean.numel(), mean.numel()), "(d, d)")
        super().__init__(mean.new_ones(1), mean[None], covariance[None])

    @property
    def covariance(self) -> Tensor:
        """Σ, (d, d), rebuilt from its eigenvectors."""
        return self._components.covariances()[0]

    def _flow(self, x: Tensor, sigma_from: float, sigma_to: float, tol: float, max_steps: int) -> Flow:
        """m + Q √((L + σ_to²)/(L + σ_from²)) Qᵀ (x − m): exact, so zero error in zero steps."""
        axes, variances = self._components.axes[0], wide(self._components.variances[0])
        ratio = ((variances + sigma_to**2) / (variances + sigma_from**2)).sqrt().to(x.dtype)
        y = self._center + (ratio * ((x.flatten(1) - self._center) @ axes.mT)) @ axes
        return Flow.of(y.reshape(x.shape), x.new_zeros(len(x)), 0)
