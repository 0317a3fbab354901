"""Random exact laws: mixtures of Gaussians whose spectra, clusters and sizes spread over what people sample.

A law has d coordinates of mean variance one. Its spectrum is a power law with a break, i^−s up to a random index and i^−t after
it, so that some laws have leading modes of large variance and a steep tail, as images do, and others are flat, as tabular data
are. Clusters have weights of their own, heavy and light, means from a second such spectrum, and variances that differ from
cluster to cluster. One table serves all rotations of a law, so that covariances are diagonal without loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.analytic import DiagonalMixture

Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """The ranges that a random law's numbers come from; sizes and counts are uniform in their logarithm.

    Args:
        dims: coordinates d.
        clusters: clusters K.
        leading: the exponent s of the spectrum before its break.
        tail: the exponent t after it.
        between: the share of the variance that lies between clusters.
        spread: the standard deviation of the logarithm of a variance around the spectrum, coordinate by coordinate.
        sizes: the same for a whole cluster.
        mixed: how often the means have their spectrum in another order than the clusters.
        scale: the standard deviation of a coordinate, where σ_data is 1.
        thin: how often a law lies near a subspace.
        thickness: by what the variances outside that subspace are multiplied.
        kept: the share of the coordinates that span it.
        off: how often the law's mean is not zero: a table has to do without knowing it.
        offset: the root mean square of that mean's coordinates.
    """

    dims: Range = (8, 3072)
    clusters: Range = (1, 30)
    leading: Range = (0.3, 1.6)
    tail: Range = (0.5, 3.0)
    between: Range = (0.05, 0.8)
    spread: Range = (0.0, 1.0)
    sizes: Range = (0.0, 0.7)
    mixed: float = 0.25
    scale: Range = (1.0, 1.0)
    thin: float = 0.3
    thickness: Range = (1e-6, 1e-3)
    kept: Range = (0.05, 0.8)
    off: float = 0.5
    offset: Range = (0.0, 0.8)


def draw(family: Family, generator: torch.Generator) -> DiagonalMixture:
    """One law of the family, float64."""
    d, k = round(_log_uniform(generator, family.dims)), round(_log_uniform(generator, family.clusters))
    within, between = _spectrum(family, d, generator), _spectrum(family, d, generator)
    if _uniform(generator, (0, 1)) < family.mixed:
        between = between[torch.randperm(d, generator=generator)]
    thickness = _thickness(family, d, generator)
    within, between = within * thickness / (within * thickness).mean(), between * thickness
    weights = 0.02 - torch.rand(k, generator=generator, dtype=torch.float64).log()
    weights = weights / weights.sum()
    share = _uniform(generator, family.between) if k > 1 else 0.0
    means = _normal(generator, k, d) * between.sqrt()
    means = means - weights @ means
    if k > 1:
        means = means * (share / (weights @ means.square()).mean()).sqrt()
    logs = _uniform(generator, family.spread) * _normal(generator, k, d)
    logs = logs + _uniform(generator, family.sizes) * _normal(generator, k, 1)
    variances = within * logs.exp()
    variances = variances * ((1 - share) / (weights @ variances).mean())
    if _uniform(generator, (0, 1)) < family.off:
        mean = _normal(generator, d) * _spectrum(family, d, generator).sqrt()
        means = means + mean * (_uniform(generator, family.offset) / mean.square().mean().sqrt())
    scale = _log_uniform(generator, family.scale)
    return DiagonalMixture(weights, scale * means, scale**2 * variances)


def _spectrum(family: Family, d: int, generator: torch.Generator) -> Tensor:
    """Variances of mean one: i^−s up to a break, i^−t after it, without a jump."""
    index, at = torch.arange(1, d + 1, dtype=torch.float64), _log_uniform(generator, (1, d))
    s, t = _uniform(generator, family.leading), _uniform(generator, family.tail)
    variances = torch.where(index < at, index**-s, at ** (t - s) * index**-t)
    return variances / variances.mean()


def _thickness(family: Family, d: int, generator: torch.Generator) -> Tensor:
    """One on the leading coordinates, and what a thin law has on the others."""
    factor, share = _log_uniform(generator, family.thickness), _log_uniform(generator, family.kept)
    if _uniform(generator, (0, 1)) >= family.thin:
        return torch.ones(d, dtype=torch.float64)
    return torch.where(torch.arange(d) < max(1, round(share * d)), 1.0, factor).double()


def _uniform(generator: torch.Generator, bounds: Range) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _log_uniform(generator: torch.Generator, bounds: Range) -> float:
    return math.exp(_uniform(generator, (math.log(bounds[0]), math.log(bounds[1]))))


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
