"""The Fréchet distance of two sets of samples, and by its derivative the standard error.

    F = ‖μ_x − μ_y‖² + tr(C_x + C_y) − 2 tr(C_x C_y)^½,    ∂F/∂μ_x = 2(μ_x − μ_y),    ∂F/∂C_x = I − T,

T the matrix that transports N(μ_x, C_x) to N(μ_y, C_y) optimally, T C_x T = C_y. Hence a sample's influence on F, and F without
group i to first order, are

    s_j = 2(μ_x − μ_y)·a_j + ‖a_j‖² − a_jᵀT a_j,   a_j = x_j − μ_x,        F_(i) ≈ F − Σ_{j∈i} (s_j − s̄)/(n − n_i).

With C_y = RᵀR and R C_x Rᵀ = VΩVᵀ, all follows from one set of eigenvalues: tr(C_x C_y)^½ = tr Ω^½, T = WᵀW, W = Ω^−¼VᵀR,
and of the way back T⁻¹ = WᵀW, W = Ω^¼VᵀR⁻ᵀ. A set of no more samples than dimensions has a singular covariance, but F is
smooth in the weights of its samples: with X and Y the centred samples as rows,

    X Yᵀ/√((n−1)(m−1)) = U S Vᵀ,    tr(C_x C_y)^½ = tr S,    a_jᵀT a_j = (n−1) (U S Uᵀ)_jj,    and of y (m−1) (V S Vᵀ)_jj.

Sources: Dowson & Landau, "The Fréchet distance between multivariate normal distributions" (1982); Jaeckel, "The infinitesimal
jackknife" (1972).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.metrics.moments import ROUNDING, SampleMoments
from steindiff.metrics.resampling import Replicates, dealt
from steindiff.metrics.samples import vectors
from steindiff.metrics.values import Value

ROWS = 4096
"""Samples at a time."""
REGULAR = 1e-5
"""The least entry over the largest of the diagonal of a Cholesky factor that is used."""


@dataclass(frozen=True, eq=False)
class Law:
    """What a Fréchet distance sees of a law: its mean μ, (d,), and covariance C, (d, d), float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """R and R⁻ᵀ, C = RᵀR: Cholesky's; Λ^½Uᵀ and Λ^−½Uᵀ, C = UΛUᵀ, where C is nearly singular, zero where Λ is.

        Raises InputError for an eigenvalue that is negative beyond rounding.
        """
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        scales = factor.diagonal()
        if not failed and float(scales.min()) > REGULAR * float(scales.max()):
            return factor.mT, torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        values, basis = torch.linalg.eigh(self.covariance)
        if float(values[0]) < -ROUNDING * max(float(values[-1]), 0.0):
            raise InputError(f"covariance has the eigenvalue {float(values[0]):.2g}: it is none; make the reference again")
        half = values.clamp_min(0).sqrt()[:, None]
        return half * basis.mT, _inverse(half) * basis.mT


@dataclass(frozen=True, eq=False)
class Transport:
    """The Fréchet distance from law x to law y, μ_x − μ_y, and what T and its inverse are made of: Ω^¼, (d, 1), V and y."""

    distance: float
    step: Tensor
    fourth: Tensor
    basis: Tensor
    to: Law

    @classmethod
    def between(cls, x: Law, y: Law) -> "Transport":
        """Costs the eigenvalues and eigenvectors of one matrix, and once a factor of C_y."""
        root, _ = y.roots
        values, basis = torch.linalg.eigh(root @ x.covariance @ root.mT)
        half, step = values.clamp_min(0).sqrt(), x.mean - y.mean
        distance = step.square().sum() + x.covariance.trace() + y.covariance.trace() - 2 * half.sum()
        return cls(float(distance), step, half.sqrt()[:, None], basis, y)

    @property
    def forth(self) -> Tensor:
        """W, (d, d): WᵀW = T, from x to y; samples of x have ‖W a‖² = aᵀT a."""
        return _inverse(self.fourth, 4) * (self.basis.mT @ self.to.roots[0])

    @property
    def back(self) -> Tensor:
        """The same from y to x."""
        return self.fourth * (self.basis.mT @ self.to.roots[1])

    def without(self, parts: list[SampleMoments], whole: SampleMoments) -> Tensor:
        """The distance without each group of the samples whose law is x, (g,), from the groups' moments and all samples'."""
        w = self.forth
        transport = w.mT @ w
        sums = []
        for part in parts:
            a = (part.mean - whole.mean)[None]
            spread = part.scatter.trace() - torch.vdot(transport.flatten(), part.scatter.flatten())
            sums.append(part.n * influence(a, self.step, w)[0] + spread)
        return left_out(self.distance, torch.stack(sums), whole.mean.new_tensor([part.n for part in parts]))


def influence(a: Tensor, step: Tensor, w: Tensor) -> Tensor:
    """s_j of centred samples a, (n, d), where the means are a step apart and W is the transport's: (n,)."""
    return 2 * a @ step + a.square().sum(1) - (a @ w.mT).square().sum(1)


def left_out(distance: float, sums: Tensor, sizes: Tensor) -> Tensor:
    """The distance without each group, (g,), from the sums of its samples' influence and their numbers, both (g,)."""
    n = sizes.sum()
    return distance - (sums - sizes * (sums.sum() / n)) / (n - sizes)


class FrechetTarget:
    """Fréchet distances to one set of samples, whose moments and covariance root are computed once.

    The distance is biased upwards by about d²/n at small n. Its standard error is that of a jackknife over groups, each of
    which is left out to first order; where samples are few that is nearer the spread of repeated draws than leaving them out.

    Args:
        y: the samples, (m, …).
        groups: how many groups the jackknife deals each set into, of at least two samples each.
    """

    def __init__(self, y: Tensor, groups: int = 20) -> None:
        self._y, self._groups = vectors(y), groups
        self._index, self._mean = dealt(len(self._y), groups).to(self._y.device), self._y.mean(0)

    def distance(self, x: "Tensor | FrechetTarget") -> Value:
        """`replicates(x).value`."""
        return self.replicates(x).value

    def replicates(self, x: "Tensor | FrechetTarget") -> Replicates:
        """The distance with its jackknife: `target.replicates(x).minus(target.replicates(base))` is a paired difference.

        Where x is itself a target, what it has computed is used again. Raises InputError unless both have the same dimension
        and as many groups.
        """
        other = x if isinstance(x, FrechetTarget) else FrechetTarget(x, self._groups)
        ours, theirs = ((target._y.shape[1], target._groups) for target in (self, other))
        require(ours == theirs, "(dimension, groups): need equal dimension; make both with the same", ours=ours, theirs=theirs)
        few = min(len(other._y), len(self._y)) <= self._y.shape[1]
        distance, of_x, of_y = _by_samples(other, self) if few else _by_moments(other, self)
        without = other._without(distance, of_x), self._without(distance, of_y)
        return Replicates(distance, *without, (len(other._y), len(self._y)))

    @cached_property
    def _law(self) -> Law:
        return Law(self._mean, SampleMoments.of(self._y).covariance)

    def _influence(self, step: Tensor, w: Tensor) -> Tensor:
        return torch.cat([influence(rows - self._mean, step, w) for rows in self._y.split(ROWS)])

    def _without(self, distance: float, shares: Tensor) -> Tensor:
        """The distance without each group of these samples."""
        sums = shares.new_zeros(self._groups).index_add_(0, self._index, shares)
        return left_out(distance, sums, self._index.bincount(minlength=self._groups)).cpu()


def frechet_distance(x: Tensor, y: Tensor, groups: int = 20) -> Value:
    """`FrechetTarget(y, groups).distance(x)`. Raises InputError for fewer than two samples a group."""
    return FrechetTarget(y, groups).distance(x)


def _by_moments(x: FrechetTarget, y: FrechetTarget) -> tuple[float, Tensor, Tensor]:
    """The distance, and the influence of each sample of x and of y, from covariances."""
    way = Transport.between(x._law, y._law)
    return way.distance, x._influence(way.step, way.forth), y._influence(-way.step, way.back)


def _by_samples(x: FrechetTarget, y: FrechetTarget) -> tuple[float, Tensor, Tensor]:
    """The same from the samples' inner products."""
    a, b, step = x._y - x._mean, y._y - y._mean, x._mean - y._mean
    n, m = len(a) - 1, len(b) - 1
    u, s, vh = torch.linalg.svd(a @ b.mT / (n * m) ** 0.5, full_matrices=False)
    of_a, of_b = a.square().sum(1), b.square().sum(1)
    distance = step.square().sum() + of_a.sum() / n + of_b.sum() / m - 2 * s.sum()
    of_x = 2 * a @ step + of_a - n * (u.square() @ s)
    of_y = -2 * b @ step + of_b - m * (vh.mT.square() @ s)
    return float(distance), of_x, of_y


def _inverse(values: Tensor, power: int = 2) -> Tensor:
    """1/values, and 0 for those whose power is nothing but rounding beside the largest."""
    known = values > (len(values) * torch.finfo(values.dtype).eps) ** (1 / power) * values.max()
    return torch.where(known, 1 / values.where(known, 1.0), 0.0)
