"""Energy distance and endpoint error, float64, each with a standard error; features for distances at small n.

Samples are (n, …) tensors, flattened to vectors. A standard error says how far another draw of the samples would move the
number; it does not contain a bias, which is why tables carry a noise floor: the same number between two independent sets from
the reference law, of the same sizes.
"""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from steindiff.errors import require, require_whole
from steindiff.metrics.samples import vectors
from steindiff.metrics.values import Shares, Value

ROWS = 1024
"""Rows of a distance matrix at a time: 10,000 against 10,000 samples then take 80 MB, not 800."""
_KEPT = 1e-8
"""An axis whose variance is less of the first one's is found from the samples, and not from their products."""


class EnergyTarget:
    """Energy distances to one set of samples, whose own E‖Y−Y'‖ is computed once."""

    def __init__(self, y: Tensor) -> None:
        self._y = vectors(y)

    def shares(self, x: "Tensor | EnergyTarget") -> Shares:
        """2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖, Euclidean norm, unbiased (Székely & Rizzo 2013); not its square root.

        The standard error is that of the first-order (Hájek) projection: Var over i of 2(E‖x_i−Y‖ − E‖x_i−X'‖), and the same
        for y. Where both laws agree the projection vanishes and the noise floor, not the standard error, is what counts.
        Where x is itself a target, its own E‖X−X'‖ is not computed again.
        """
        other = x if isinstance(x, EnergyTarget) else EnergyTarget(x)
        shapes = tuple(other._y.shape), tuple(self._y.shape)
        require(shapes[0][1] == shapes[1][1], "need equal dimension", shapes=shapes)
        of_x, of_y = _cross_distances(other._y, self._y)
        distance = 2 * of_x.mean() - other._within.mean() - self._within.mean()
        return Shares(float(distance), 2 * (of_x - other._within), 2 * (of_y - self._within))

    @cached_property
    def _within(self) -> Tensor:
        """Mean distance of each sample to the others; each pair once."""
        y, sums = self._y, self._y.new_zeros(len(self._y))
        for i in range(0, len(y), ROWS):
            rows = torch.cdist(y[i : i + ROWS], y[i:])
            here = len(rows)
            rows[:, :here].fill_diagonal_(0)
            sums[i : i + here] += rows.sum(1)
            sums[i + here :] += rows[:, here:].sum(0)
        return sums / (len(y) - 1)


def energy_distance(x: Tensor, y: Tensor) -> Value:
    """`EnergyTarget(y).shares(x).value`."""
    return EnergyTarget(y).shares(x).value


def energy_difference(x: Tensor, base: Tensor, y: Tensor) -> Value:
    """Energy distance of x to y less that of base to y, x and base from the same noise: negative where x is nearer."""
    target = EnergyTarget(y)
    return target.shares(x).minus(target.shares(base))


def _cross_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance of each x to all y, and of each y to all x."""
    of_x, of_y = [], y.new_zeros(len(y))
    for part in x.split(ROWS):
        rows = torch.cdist(part, y)
        of_x.append(rows.mean(1))
        of_y += rows.sum(0)
    return torch.cat(of_x), of_y / len(x)


def endpoint_rmse(x: Tensor, reference: Tensor) -> Value:
    """√(E‖x − x_ref‖²/d) over pairs that started from the same noise. Raises InputError on shapes that differ."""
    x, reference = vectors(x, 1), vectors(reference, 1)
    shapes = tuple(x.shape), tuple(reference.shape)
    require(shapes[0] == shapes[1], "need pairs, which start from the same noise", shapes=shapes)
    return root_of_mean((x - reference).square().mean(1))


def root_of_mean(squares: Tensor) -> Value:
    """The root of the mean of squares (n,), with its standard error by the delta method."""
    mean, se = Value.mean_of(squares)
    rmse = math.sqrt(mean)
    return Value(rmse, se / (2 * rmse) if rmse > 0 else 0.0)


def principal_features(reference: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """x ↦ (x − μ) V, V the `count` leading principal axes of the reference: features for a Fréchet distance at small n.

    Raises InputError unless 1 ≤ count < n, and count is no more than the dimension.
    """
    flat = vectors(reference)
    require_whole(1, count=count)
    most = min(len(flat) - 1, flat.shape[1])
    require(count <= most, f"{tuple(flat.shape)} samples have 1 to {most} principal axes: ask for fewer", count=count)
    mean = flat.mean(0)
    axes = _leading(flat - mean, count)

    def features(x: Tensor) -> Tensor:
        rows = vectors(x, 0)
        fit = rows.shape[1] == len(mean)
        require(fit, f"need samples of {len(mean)} numbers, as the reference's are", shape=tuple(x.shape))
        projected: Tensor = (rows - mean) @ axes
        return projected

    return features


def _leading(x: Tensor, count: int) -> Tensor:
    """The leading right singular vectors of x (n, d), as columns (d, count), by the eigenvectors of the smaller of xxᵀ and xᵀx.

    That squares the singular values, and takes a tenth of the time; where one that is asked for is lost, it is not done.
    """
    tall = len(x) >= x.shape[1]
    values, basis = torch.linalg.eigh(x.mT @ x if tall else x @ x.mT)
    values, basis = values.flip(0)[:count], basis.flip(1)[:, :count]
    if not float(values[-1]) > _KEPT * float(values[0]):
        vt: Tensor = torch.linalg.svd(x, full_matrices=False)[2]
        return vt[:count].mT
    axes: Tensor = basis if tall else x.mT @ basis / values.sqrt()
    return axes
