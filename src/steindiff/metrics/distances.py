"""Energy distance, Fréchet distance and endpoint error, float64, each with a standard error.

Samples are (n, …) tensors, flattened to vectors. A standard error says how far another draw of the samples would move the
number; it does not contain the bias that a Fréchet distance has at small n, which is why tables carry a noise floor: the
same number between two independent sets from the reference law, of the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.errors import InputError

__all__ = [
    "EnergyTarget",
    "Shares",
    "Value",
    "endpoint_rmse",
    "energy_difference",
    "energy_distance",
    "frechet_distance",
    "principal_features",
]


class Value(NamedTuple):
    """A number with its standard error."""

    value: float
    se: float

    def __str__(self) -> str:
        if not abs(self.value) < float("inf"):
            return "diverged"
        if abs(self.value) >= 1000:
            return f"{self.value:.1e} ± {self.se:.0e}"
        digits = 1 if self.value >= 100 else 2 if self.value >= 10 else 4
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


class Shares(NamedTuple):
    """An energy distance with each sample's share in it (its Hájek projection up to a constant), from which errors follow."""

    distance: float
    of_x: Tensor
    of_y: Tensor

    @property
    def value(self) -> Value:
        """The distance with its standard error."""
        return Value(self.distance, _standard_error(self.of_x, self.of_y))

    def minus(self, other: Shares) -> Value:
        """The difference of two distances to one target, from paired samples. Raises InputError where numbers differ."""
        if len(self.of_x) != len(other.of_x) or len(self.of_y) != len(other.of_y):
            raise InputError(f"{len(self.of_x)} samples against {len(other.of_x)}: pairs must start from the same noise")
        return Value(self.distance - other.distance, _standard_error(self.of_x - other.of_x, self.of_y - other.of_y))


class EnergyTarget:
    """Energy distances to one set of samples, whose own E‖Y−Y'‖ is computed once.

    Raises:
        InputError: fewer than two samples, or shapes that differ.
    """

    def __init__(self, y: Tensor) -> None:
        self._y = y
        self._within: Tensor | None = None

    def shares(self, x: Tensor) -> Shares:
        """The distance of x to the target: 2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, Euclidean norm, unbiased."""
        x, y = _matrices(x, self._y, least=2)
        if self._within is None:
            self._within = _mean_distances(y)
        cross, within = torch.cdist(x, y), _mean_distances(x)
        distance = 2 * cross.mean() - within.mean() - self._within.mean()
        return Shares(float(distance), 2 * (cross.mean(1) - within), 2 * (cross.mean(0) - self._within))


def energy_distance(x: Tensor, y: Tensor) -> Value:
    """2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, Euclidean norm, unbiased (Székely & Rizzo 2013); not its square root.

    The standard error is that of the first-order (Hájek) projection: Var over i of 2(E‖x_i−Y‖ − E‖x_i−X'‖), and the same for
    y. Where both laws agree the projection vanishes and the noise floor, not the standard error, is what counts.

    Raises:
        InputError: fewer than two samples, or shapes that differ.
    """
    return EnergyTarget(y).shares(x).value


def energy_difference(x: Tensor, base: Tensor, y: Tensor) -> Value:
    """Energy distance of x to y less that of base to y, x and base from the same noise: negative where x is nearer.

    The standard error is of the paired difference, so it is smaller than that of either distance.

    Raises:
        InputError: x and base differ in number, or as `energy_distance`.
    """
    target = EnergyTarget(y)
    return target.shares(x).minus(target.shares(base))


def _mean_distances(x: Tensor) -> Tensor:
    """Mean distance of each sample to the others."""
    return torch.cdist(x, x).sum(1) / (len(x) - 1)


def _standard_error(of_x: Tensor, of_y: Tensor) -> float:
    return float((of_x.var() / len(of_x) + of_y.var() / len(of_y)).sqrt())


def frechet_distance(x: Tensor, y: Tensor, groups: int = 20) -> Value:
    """‖μ_x−μ_y‖² + tr(C_x + C_y − 2(C_x C_y)^½), Gaussians fitted to both sets; biased upwards by about d²/n at small n.

    Standard error: delete-a-group jackknife over both sets, `groups` each.

    Raises:
        InputError: fewer than two samples a group, or shapes that differ.
    """
    x, y = _matrices(x, y, least=2 * groups)
    value = _frechet(x, y)
    se2 = _jackknife(lambda z: _frechet(z, y), x, groups) + _jackknife(lambda z: _frechet(x, z), y, groups)
    return Value(value, se2**0.5)


def endpoint_rmse(x: Tensor, reference: Tensor) -> Value:
    """√(E‖x − x_ref‖²/d) over pairs that started from the same noise. Raises InputError on shapes that differ."""
    x, reference = _matrices(x, reference, least=1)
    if len(x) != len(reference):
        raise InputError(f"{len(x)} samples against {len(reference)}: pairs must start from the same noise")
    squares = (x - reference).square().mean(1)
    rmse = float(squares.mean().sqrt())
    spread = float(squares.std()) / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return Value(rmse, spread / (2 * rmse) if rmse > 0 else 0.0)


def principal_features(reference: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """x ↦ (x − μ) V, V the `count` leading principal axes of the reference samples: features for a Fréchet distance at small n.

    Raises:
        InputError: count is not below the number of reference samples and at most the dimension.
    """
    flat = reference.flatten(1).double()
    if not 1 <= count <= min(len(flat) - 1, flat.shape[1]):
        raise InputError(f"{count} principal axes from {len(flat)} samples of dimension {flat.shape[1]}: ask for fewer")
    mean = flat.mean(0)
    axes = torch.linalg.svd(flat - mean, full_matrices=False)[2][:count].T
    return lambda x: (x.flatten(1).double() - mean) @ axes


def _matrices(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    x, y = x.flatten(1).double(), y.flatten(1).double()
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise InputError(
            f"samples of shapes {tuple(x.shape)} and {tuple(y.shape)}: need equal dimension and at least {least} each"
        )
    return x, y


def _frechet(x: Tensor, y: Tensor) -> float:
    """(C_x C_y)^½ has the eigenvalues of (C_x^½ C_y C_x^½)^½, which is symmetric."""
    cx, cy = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(cx)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cy @ root).clamp_min(0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * cross)


def _jackknife(statistic: Callable[[Tensor], float], x: Tensor, groups: int) -> float:
    """Variance of a statistic of x: (g−1)/g Σ (θ_(i) − θ̄)², θ_(i) without group i."""
    index = torch.arange(len(x)) % groups
    values = torch.tensor([statistic(x[index != i]) for i in range(groups)], dtype=torch.float64)
    return float((groups - 1) / groups * (values - values.mean()).square().sum())
