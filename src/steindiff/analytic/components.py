"""K Gaussians N(μ_k, Σ_k) seen through noise: everything a mixture needs from (Σ_k + σ²)⁻¹.

With e_k = x − μ_k and z_k = (Σ_k + σ²)⁻¹ e_k, each family gives, for all k at once and without forming Σ_k:

    q_k = e_kᵀ z_k                     the Mahalanobis form, as a sum of squares
    m_k = μ_k + Σ_k z_k                the posterior mean of x* in component k, never as x − σ² z_k
    log det(Σ_k + σ²),  tr Σ_k (Σ_k + σ²)⁻¹

A `Noisy` has the components N(μ_k, Σ_k + σ²) at one σ. `log_scale` is −½ log det(Σ_k + σ²), float64. `project` takes x to the
coordinates (B, K, r) that determine m_k and z_k, and to q_k; `mean` is Σ_k p_k m_k and `whitened` Σ_k p_k z_k, minus the score,
both (B, d); `means` is m_k, (B, K, d); `traces` is tr Σ_k (Σ_k + σ²)⁻¹, (n, K).

Sums of squares and convex combinations keep float32 accurate from σ = 0.002 to σ = 80: no term is a small difference of
large ones beyond the rounding that x itself carries. Shapes: x (B, d); responsibilities p (B, K); scalars per component
(n, K) with n = 1 for a common σ and n = B otherwise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from steindiff.analytic.recent import Recent
from steindiff.errors import InputError

Record = TypeVar("Record", bound="Components")


def wide(x: Tensor) -> Tensor:
    """x in float64 where the device has it: the few numbers that depend on σ alone are computed there."""
    return x if x.device.type == "mps" else x.double()


@dataclass(frozen=True, eq=False)
class Components(ABC):
    """K Gaussians N(μ_k, Σ_k) in d dimensions; the means μ_k (K, d) are centred."""

    means: Tensor
    per_sample: ClassVar[bool]
    """Whether `at` takes a σ per sample; if not, a mixture groups the batch by σ."""

    def to(self: Record, dtype: torch.dtype | None, device: torch.device | str | None) -> Record:
        """Move every tensor to another dtype or device."""
        parts = [f.name for f in fields(self) if f.init]
        return replace(self, **{name: getattr(self, name).to(device=device, dtype=dtype) for name in parts})

    @abstractmethod
    def at(self, sigma: Tensor) -> "Noisy":
        """The components convolved with N(0, σ²): sigma () or, where `per_sample`, (B,)."""

    @abstractmethod
    def traces(self) -> Tensor:
        """tr Σ_k, (K,)."""

    @abstractmethod
    def least_variance(self) -> float:
        """A lower bound of the eigenvalues of every Σ_k; zero if one is singular."""

    @abstractmethod
    def draw(self, k: int, n: int, generator: torch.Generator | None) -> Tensor:
        """n draws of N(μ_k, Σ_k), (n, d)."""


def normal(like: Tensor, *shape: int, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers with the dtype and device of `like`, drawn on the generator's device."""
    device = like.device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


@dataclass(frozen=True, eq=False)
class Dense(Components):
    """Σ_k = A_kᵀ diag(L_k) A_k from one eigen-decomposition: eigenvectors as rows A_k (K, d, d), variances L_k ≥ 0 (K, d)."""

    axes: Tensor
    variances: Tensor
    per_sample: ClassVar[bool] = True

    @classmethod
    def of(cls, means: Tensor, covariances: Tensor) -> "Dense":
        """The decomposition of covariances (K, d, d). Eigenvalues negative by rounding become zero; others are refused."""
        variances, columns = torch.linalg.eigh(wide(covariances))
        least = float(variances.min())
        limit = -10 * means.shape[-1] * torch.finfo(covariances.dtype).eps * float(variances.max())
        if least < limit:
            raise InputError(
                f"a covariance has the eigenvalue {least:g}: need positive semidefinite (rounding allows {limit:.1g}); "
                f"add {-least:.2g} to its diagonal"
            )
        return cls(means, columns.mT.contiguous().to(means.dtype), variances.clamp_min(0).to(means.dtype))

    def at(self, sigma: Tensor) -> "DenseNoisy":
        """L_k + σ² on the eigenvectors."""
        total = wide(self.variances) + wide(sigma).square().reshape(-1, 1, 1)
        gain = wide(self.variances) / total
        gain, inverse = (t.to(self.means.dtype) for t in (gain, total.reciprocal()))
        return DenseNoisy(self, gain, inverse, log_scale=-0.5 * total.log().sum(-1))

    def traces(self) -> Tensor:
        """Σ_i L_ki."""
        return self.variances.sum(-1)

    def least_variance(self) -> float:
        """min L."""
        return float(self.variances.min())

    def draw(self, k: int, n: int, generator: torch.Generator | None) -> Tensor:
        """μ + A diag(√L) ξ."""
        xi = normal(self.means, n, self.means.shape[-1], generator=generator)
        return self.means[k] + (xi * self.variances[k].sqrt()) @ self.axes[k]

    def covariances(self) -> Tensor:
        """Σ_k, (K, d, d)."""
        return self.axes.mT @ (self.variances[..., None] * self.axes)


@dataclass(frozen=True, eq=False)
class DenseNoisy:
    """Coordinates u = A (x − μ): q = Σ u²/(L + σ²), m = μ + Aᵀ (L/(L + σ²) u). Everything but `means` is two large GEMMs.

    `gain` is L/(L + σ²) and `inverse` 1/(L + σ²), (n, K, d).
    """

    components: Dense
    gain: Tensor
    inverse: Tensor
    log_scale: Tensor

    def traces(self) -> Tensor:
        """Σ_i L_ki/(L_ki + σ²)."""
        return self.gain.sum(-1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, K, d) and q (B, K)."""
        means, axes = self.components.means, self.components.axes
        u = (x @ axes.flatten(0, 1).mT).unflatten(-1, axes.shape[:2]) - (axes @ means[..., None])[..., 0]
        return u, (u.square() * self.inverse).sum(-1)

    def mean(self, x: Tensor, coordinates: Tensor, p: Tensor) -> Tensor:
        """Σ_k p_k (μ_k + A_kᵀ (L/(L + σ²) u)_k)."""
        return p @ self.components.means + self._back(self.gain * coordinates, p)

    def whitened(self, x: Tensor, coordinates: Tensor, p: Tensor) -> Tensor:
        """Σ_k p_k A_kᵀ (u/(L + σ²))_k."""
        return self._back(self.inverse * coordinates, p)

    def means(self, x: Tensor, coordinates: Tensor) -> Tensor:
        """μ_k + A_kᵀ (L/(L + σ²) u)_k."""
        back = (self.gain * coordinates).transpose(0, 1) @ self.components.axes
        return self.components.means + back.transpose(0, 1)

    def _back(self, u: Tensor, p: Tensor) -> Tensor:
        return (p[..., None] * u).flatten(1) @ self.components.axes.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class LowRank(Components):
    """Σ_k = W_k W_kᵀ + diag(ψ_k), with loadings W_kᵀ (K, r, d) and a diagonal ψ_k > 0 (K, d).

    A noise level costs as much as a batch of many images, so the levels last asked for are kept.
    """

    loadings: Tensor
    diagonal: Tensor
    per_sample: ClassVar[bool] = False
    _recent: "Recent[LowRankNoisy]" = field(default_factory=lambda: Recent(LowRankNoisy.bytes), init=False, repr=False)

    @cached_property
    def basis(self) -> Tensor:
        """Wᵀ and, as its last row, μ, (K, r+1, d)."""
        return torch.cat([self.loadings, self.means[:, None]], 1)

    @cached_property
    def _wide(self) -> tuple[Tensor, Tensor]:
        """Wᵀ and ψ in float64."""
        return wide(self.loadings), wide(self.diagonal)

    def at(self, sigma: Tensor) -> "LowRankNoisy":
        """The components convolved with N(0, σ²), sigma ()."""
        return self._recent.get(sigma, self._at)

    def _at(self, sigma: Tensor) -> "LowRankNoisy":
        """Woodbury: S = ψ + σ², M = I + Wᵀ S⁻¹ W, G = M⁻¹ Wᵀ S⁻¹; det(Σ + σ²) = det S det M (the determinant lemma)."""
        s2, (w, psi) = wide(sigma).square(), self._wide
        total = psi + s2
        scaled = w / total[:, None]
        identity = torch.eye(w.shape[1], dtype=w.dtype, device=w.device).expand(len(w), -1, -1)
        factor = torch.linalg.cholesky(scaled @ w.mT + identity)
        log_det = total.log().sum(-1) + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        dtype, inverse = self.means.dtype, total.reciprocal().to(self.means.dtype)
        # M⁻¹ by solving, since torch's forward derivative of cholesky_inverse is wrong; to solve for d columns would take three
        # times as long as the product.
        solve = (torch.cholesky_solve(identity, factor) @ scaled).to(dtype)
        return LowRankNoisy(
            basis=self.basis,
            scaled=self.basis * inverse[:, None],
            solve=solve,
            shift=(solve @ self.means[..., None])[..., 0],
            own=(psi / total).to(dtype),
            inverse=inverse,
            variance=s2.to(dtype),
            log_scale=-0.5 * log_det[None],
        )

    def traces(self) -> Tensor:
        """‖W_k‖² + Σ_i ψ_ki."""
        return self.loadings.square().sum((1, 2)) + self.diagonal.sum(-1)

    def least_variance(self) -> float:
        """min ψ."""
        return float(self.diagonal.min())

    def draw(self, k: int, n: int, generator: torch.Generator | None) -> Tensor:
        """μ + W ξ + √ψ ζ."""
        rank, d = self.loadings.shape[1:]
        xi = normal(self.means, n, rank + d, generator=generator)
        return self.means[k] + xi[:, :rank] @ self.loadings[k] + xi[:, rank:] * self.diagonal[k].sqrt()


@dataclass(frozen=True, eq=False)
class LowRankNoisy:
    """Coordinates c = G (x − μ), t = μ + W c, r = x − t: z = r/S, q = ‖S^{-½} r‖² + ‖c‖², m = (ψ x + σ² t)/S.

    Args:
        basis: Wᵀ and, as its last row, μ, (K, r+1, d): with c extended by 1, t is one product.
        scaled: the rows of `basis` times S⁻¹.
        solve: G, (K, r, d).
        shift: G μ, (K, r).
        own, inverse: ψ/S and 1/S, (K, d).
        variance: σ², ().
    """

    basis: Tensor
    scaled: Tensor
    solve: Tensor
    shift: Tensor
    own: Tensor
    inverse: Tensor
    variance: Tensor
    log_scale: Tensor

    def bytes(self) -> int:
        """The memory that this level takes beside the law's own."""
        return sum(tensor.nbytes for tensor in (self.scaled, self.solve, self.own, self.inverse))

    def traces(self) -> Tensor:
        """Σ_i ψ_i/S_i + σ² tr G S⁻¹ W, not d − σ² tr (Σ + σ²)⁻¹, whose terms cancel at large σ."""
        return (self.own.sum(-1) + self.variance * (self.solve * self.scaled[:, :-1]).sum((1, 2)))[None]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(c, 1), (B, K, r+1), and q (B, K); r is the only (K, B, d) array."""
        c = (x @ self.solve.flatten(0, 1).mT).unflatten(-1, self.solve.shape[:2]) - self.shift
        c = torch.cat([c, torch.ones_like(c[..., :1])], -1)
        r = torch.baddbmm(x.expand(self.basis.shape[0], *x.shape), c.transpose(0, 1), self.basis, alpha=-1)
        # sum, not a matrix-vector product: its pairwise summation keeps float32 weights p_k 10 to 30 times more accurate.
        q = (r.square() * self.inverse[:, None]).sum(-1).mT + c[..., :-1].square().sum(-1)
        return c, q

    def mean(self, x: Tensor, coordinates: Tensor, p: Tensor) -> Tensor:
        """Σ_k p_k (ψ x + σ² t)_k/S_k."""
        return x * (p @ self.own) + self.variance * self._back(coordinates, p)

    def whitened(self, x: Tensor, coordinates: Tensor, p: Tensor) -> Tensor:
        """Σ_k p_k (x − t_k)/S_k."""
        return x * (p @ self.inverse) - self._back(coordinates, p)

    def means(self, x: Tensor, coordinates: Tensor) -> Tensor:
        """(ψ x + σ² t)_k/S_k."""
        t = coordinates.transpose(0, 1) @ self.scaled
        return (self.own[:, None] * x + self.variance * t).transpose(0, 1)

    def _back(self, coordinates: Tensor, p: Tensor) -> Tensor:
        return (p[..., None] * coordinates).flatten(1) @ self.scaled.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Diagonal(Components):
    """Σ_k = diag(v_k), v_k ≥ 0 (K, d): every step of a call is one product of matrices, and no (K, B, d) array is made."""

    variances: Tensor
    per_sample: ClassVar[bool] = False

    def at(self, sigma: Tensor) -> "DiagonalNoisy":
        """v_k + σ², in float64."""
        v, dtype = wide(self.variances), self.means.dtype
        total = v + wide(sigma).square()
        inverse, log_scale = total.reciprocal(), -0.5 * total.log().sum(-1)
        return DiagonalNoisy(self.means, (v * inverse).to(dtype), inverse, log_scale[None])

    def traces(self) -> Tensor:
        """Σ_i v_ki."""
        return self.variances.sum(-1)

    def least_variance(self) -> float:
        """min v."""
        return float(self.variances.min())

    def draw(self, k: int, n: int, generator: torch.Generator | None) -> Tensor:
        """μ + √v ξ."""
        return self.means[k] + normal(self.means, n, self.means.shape[-1], generator=generator) * self.variances[k].sqrt()


@dataclass(frozen=True, eq=False)
class DiagonalNoisy:
    """z = (x − μ)/S, q = x²·(1/S) − 2 x·(μ/S) + μ²·(1/S) in float64, m = μ + v z; the coordinates are x itself, (B, 1, d).

    `gain` is v/S in the law's dtype and `inverse` 1/S in float64, (K, d), S = v + σ².
    """

    centres: Tensor
    gain: Tensor
    inverse: Tensor
    log_scale: Tensor

    def traces(self) -> Tensor:
        """Σ_i v_ki/S_ki."""
        return self.gain.sum(-1)[None]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x, q), (B, 1, d) and (B, K)."""
        y, mu = wide(x), wide(self.centres)
        shifted = mu * self.inverse
        q = y.square() @ self.inverse.mT - 2 * (y @ shifted.mT) + (mu * shifted).sum(-1)
        return x[:, None], q.to(x.dtype)

    def mean(self, x: Tensor, coordinates: Tensor, p: Tensor) -> Tensor:
        """Σ_k p_k ((1 − v/S) μ + (v/S) x)_k."""
        return p @ (self.centres - self.gain * self.centres) + (p @ self.gain) * x

    def whitened(self, x: Tensor, coordinates: Tensor, p: Tensor) -> Tensor:
        """Σ_k p_k ((x − μ)/S)_k."""
        inverse = self.inverse.to(x.dtype)
        return (p @ inverse) * x - p @ (inverse * self.centres)

    def means(self, x: Tensor, coordinates: Tensor) -> Tensor:
        """μ_k + v_k (x − μ_k)/S_k."""
        return self.centres + self.gain * (coordinates - self.centres)


Noisy = DenseNoisy | LowRankNoisy | DiagonalNoisy
