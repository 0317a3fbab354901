"""Mean and covariance of samples in float64, from parts in any order.

    n = n₁ + n₂,    μ = μ₁ + (n₂/n) δ,    S = S₁ + S₂ + (n₁n₂/n) δδᵀ,    δ = μ₂ − μ₁,    S = Σ (x − μ)(x − μ)ᵀ

Source: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
"""

from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.errors import InputError, require
from steindiff.metrics.samples import vectors

CHUNK = 4096
ROUNDING = 1e-6
"""Asymmetry and negative eigenvalues that a covariance may have, relative to its largest entry or eigenvalue."""


@dataclass(frozen=True, eq=False)
class SampleMoments:
    """Number n, mean μ (d,) and scatter S (d, d) of samples; `of` the parts, merged, are `of` the whole up to rounding."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "SampleMoments":
        """The moments of samples (n, …), n ≥ 1, each flattened to d numbers; only a chunk of them is float64 at a time.

        Raises InputError as `samples.vectors`.
        """
        return reduce(cls.merge, (cls._of_chunk(vectors(chunk, 1)) for chunk in check_samples(x).split(CHUNK)))

    @classmethod
    def _of_chunk(cls, x: Tensor) -> "SampleMoments":
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.mT @ centred)

    def merge(self, other: "SampleMoments") -> "SampleMoments":
        """The moments of both sets together. Raises InputError where dimensions differ."""
        self._check(other)
        n = self.n + other.n
        step = other.mean - self.mean
        scatter = (self.scatter + other.scatter).addr_(step, step, alpha=self.n * other.n / n)
        return SampleMoments(n, self.mean + step * (other.n / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """S/(n − 1). Raises InputError for a single sample."""
        require(self.n > 1, "one sample has no covariance: need at least 2", n=self.n)
        return self.scatter / (self.n - 1)

    def _check(self, other: "SampleMoments") -> None:
        sizes = len(self.mean), len(other.mean)
        require(sizes[0] == sizes[1], "need the same", numbers_of_a_sample=sizes)


def check_enough(n: int, d: int, few: bool, counted: str = "") -> None:
    """Raises InputError where n samples of d features, or what is `counted`, are too few, unless that is allowed."""
    if n <= d and not few:
        raise InputError(
            f"{counted or f'n = {n} samples of d = {d} features'}: their covariance is singular; draw at least {d + 1}, 50000 "
            "for numbers that compare with published ones, or allow it by few=True (--few) and compare equal n only"
        )
