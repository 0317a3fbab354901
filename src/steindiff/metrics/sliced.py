"""Sliced Wasserstein distances: optimal transport on lines, averaged over directions.

    SW_p^p(P, Q) = E_θ W_p^p(θ·X, θ·Y),    W_p^p(a, b) = ∫₀¹ |a(u) − b(u)|^p du,

a(u), b(u) the quantile functions, for which sorting suffices: W on a line is exact for any two numbers of samples, and what is
left to chance is the directions θ. They are fixed by a seed and the same for all sets of one dimension, so two distances
differ by their samples alone. A distance is biased upwards, by about its value between two sets of one law: the noise floor.

A sample's share in it is the Kantorovich potential φ, with φ'(s) = p |s − T(s)|^{p−1} sign(s − T(s)), T the transport map: by
the central limit theorem for transport costs on a line (del Barrio & Loubes 2019) the variance is Var φ(X)/n + Var ψ(Y)/m.

Source: Bonneel, Rabin, Peyré & Pfister, "Sliced and Radon Wasserstein barycenters of measures" (2015).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from steindiff.errors import require, require_whole
from steindiff.metrics.samples import vectors
from steindiff.metrics.values import Shares, Value

BLOCK = 16
"""Directions at a time: 50,000 against 50,000 samples then take some 50 MB."""


class SlicedTarget:
    """Sliced distances to one set of samples, which is projected and sorted once.

    Args:
        y: the samples, (m, …), at least two.
        count: number of directions.
        seed: what the directions are drawn from.
        power: p, 2 or 1; the number is W_2² or W_1, not its root.
    """

    def __init__(self, y: Tensor, count: int = 128, seed: int = 0, power: Literal[1, 2] = 2) -> None:
        require(isinstance(power, int) and power in (1, 2), "need 1, for W_1, or 2, for the square of W_2", power=power)
        require_whole(0, seed=seed)
        self._y, self._rule = vectors(y), (count, seed, power)
        self._values, self._order = (directions(self._y.shape[1], count, seed).to(y.device) @ self._y.mT).sort(1)

    def shares(self, x: "Tensor | SlicedTarget") -> Shares:
        """The distance of x to the target. Where x is itself a target, it is not sorted again.

        The standard error is that of the samples, at these directions; other directions, the same for both sets, give another
        number. Where both laws agree the shares vanish and the noise floor, not the standard error, is what counts.
        """
        other = x if isinstance(x, SlicedTarget) else SlicedTarget(x, *self._rule)
        ours, theirs = ((target._y.shape[1], *target._rule) for target in (self, other))
        need = "(dimension, directions, seed, power): need the same dimension and the same rule"
        require(ours == theirs, need, ours=ours, theirs=theirs)
        count, _, power = self._rule
        costs, of_x, of_y = [], other._y.new_zeros(len(other._y)), self._y.new_zeros(len(self._y))
        for some in (slice(i, i + BLOCK) for i in range(0, count, BLOCK)):
            cost, slopes_x, slopes_y = _on_lines(other._values[some], self._values[some], power)
            costs.append(cost)
            of_x += _potential(other._values[some], other._order[some], slopes_x)
            of_y += _potential(self._values[some], self._order[some], slopes_y)
        return Shares(float(torch.cat(costs).mean()), of_x / count, of_y / count)


def sliced_wasserstein(x: Tensor, y: Tensor, count: int = 128, seed: int = 0, power: Literal[1, 2] = 2) -> Value:
    """Mean over fixed directions of W_p^p between projections: `SlicedTarget(y, count, seed, power).shares(x).value`."""
    return SlicedTarget(y, count, seed, power).shares(x).value


def directions(d: int, count: int, seed: int = 0) -> Tensor:
    """Uniform on the sphere, orthonormal in runs of d, (count, d): with count a multiple of d, Σ_θ (θ·v)² = ‖v‖² count/d."""
    require_whole(1, directions=count, dimensions=d)
    generator = torch.Generator().manual_seed(seed)
    runs = []
    for start in range(0, count, d):
        draw = torch.randn(d, min(d, count - start), generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(draw)
        runs.append((q * r.diagonal().sign()).mT)
    return torch.cat(runs)


def _on_lines(x: Tensor, y: Tensor, power: int) -> tuple[Tensor, Tensor, Tensor]:
    """W_p^p on each line, (lines,), and slopes φ' = n ∂W/∂x at the sorted samples of x and of y, (lines, n) and (lines, m)."""
    n, m = x.shape[1], y.shape[1]
    # Levels u at which either quantile function jumps, in units of 1/(nm), so that they are whole numbers.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    widths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    at_x, at_y = (ends - 1) // m, (ends - 1) // n
    gap = x[:, at_x] - y[:, at_y]
    pull = widths * (2 * gap if power == 2 else gap.sign())
    slopes_x = torch.zeros_like(x).index_add_(1, at_x, pull) * n
    slopes_y = torch.zeros_like(y).index_add_(1, at_y, -pull) * m
    return (widths * gap.abs().pow(power)).sum(1), slopes_x, slopes_y


def _potential(values: Tensor, order: Tensor, slopes: Tensor) -> Tensor:
    """φ from its slopes by the trapezoidal rule, in the samples' own order, summed over lines."""
    steps = values.diff(dim=1) * (slopes[:, 1:] + slopes[:, :-1]) / 2
    potential = F.pad(steps.cumsum(1), (1, 0))
    return torch.zeros_like(values).scatter_(1, order, potential).sum(0)
