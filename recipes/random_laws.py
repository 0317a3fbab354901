"""Random exact laws: mixtures of Gaussians whose spectra, clusters and sizes spread over what people sample.

A law has d coordinates of mean variance one. Its spectrum is a power law with a break, i^−s up to a random index and i^−t after
it, so that some laws have leading modes of large variance and a steep tail, as images do, and others are flat, as tabular data
are. Clusters have weights of their own, heavy and light, means from a second such spectrum, and variances that differ from
cluster to cluster. One table serves all rotations of a law, so that covariances are diagonal without loss.

Under guidance a law has classes, which are clusters or groups of clusters, and every image has one of them.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from steindiff.analytic import DiagonalMixture

Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """The ranges that a random law's numbers come from; sizes and counts are uniform in their logarithm."""

    dims: Annotated[Range, "coordinates"] = (8, 3072)
    clusters: Annotated[Range, "clusters"] = (1, 30)
    leading: Annotated[Range, "exponent of the spectrum before its break"] = (0.3, 1.6)
    tail: Annotated[Range, "exponent after it"] = (0.5, 3.0)
    between: Annotated[Range, "share of the variance between clusters"] = (0.05, 0.8)
    spread: Annotated[Range, "spread of the logarithm of a variance, coordinate by coordinate"] = (0.0, 1.0)
    sizes: Annotated[Range, "the same for a whole cluster"] = (0.0, 0.7)
    mixed: Annotated[float, "share of laws whose means have their spectrum in another order than the clusters"] = 0.25
    scale: Annotated[Range, "standard deviation of a coordinate, in units of σ_data"] = (1.0, 1.0)
    thin: Annotated[float, "share of laws that lie near a subspace"] = 0.3
    thickness: Annotated[Range, "what the variances outside that subspace are multiplied by"] = (1e-6, 1e-3)
    kept: Annotated[Range, "share of the coordinates that span it"] = (0.05, 0.8)
    off: Annotated[float, "share of laws that lie off centre: a table has to do without knowing it"] = 0.5
    offset: Annotated[Range, "root mean square of such a law's mean"] = (0.0, 0.8)


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


GUIDED = (
    Family(clusters=(2, 30)),
    Family(dims=(256, 3072), clusters=(2, 30), leading=(0.8, 1.6), tail=(1.0, 3.0), between=(0.05, 0.4), mixed=0.0, thin=0.1),
)
"""What the laws under guidance come from, in turns: the usual laws, and laws like images. The latter tell their classes apart
at much higher noise levels, so that a table of the former fails on images."""
GROUPED = 0.3
"""How often the classes of a law are groups of clusters, and not single ones."""


@dataclass(frozen=True, eq=False)
class GuidedMixture:
    """D + w (D_c − D) of a mixture of Gaussians, where image i has the class c_i.

    With p_k the responsibilities of all clusters, and p'_k those within the image's class, it is Σ_k q_k m_k. Here m_k is the
    posterior mean in cluster k, and q = p + w (p' − p).

    Attributes:
        law: the mixture of K clusters.
        inside: whether a cluster is of an image's class, (B, K).
        scale: w.
    """

    law: DiagonalMixture
    inside: Tensor
    scale: float

    def of(self, index: Tensor) -> "GuidedMixture":
        """The same for some images, by their numbers, (b,)."""
        return replace(self, inside=self.inside[index])

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The guided denoised values, (B, d)."""
        law, variance = self.law, float(sigma) ** 2
        precision = 1 / (law.variances + variance)
        scaled = precision * law.means
        squares = x.square() @ precision.mT - 2 * x @ scaled.mT + (scaled * law.means).sum(1)
        logits = law.weights.log() + precision.log().sum(1) / 2 - squares / 2
        own = logits.masked_fill(~self.inside, -math.inf)
        p = logits.softmax(1)
        q = p + self.scale * (own.softmax(1) - p)
        gain = law.variances * precision
        return (q @ gain) * x + q @ (law.means * (1 - gain))


def guided(law: DiagonalMixture, images: int, scales: Range, generator: torch.Generator) -> GuidedMixture:
    """The law with random classes, each image's class, and a scale of guidance that is uniform in its logarithm."""
    k = len(law.weights)
    groups = k > 2 and _uniform(generator, (0, 1)) < GROUPED
    classes = 2 + int(_uniform(generator, (0, k - 2))) if groups else k
    of = torch.cat([torch.arange(classes), torch.randint(classes, (k - classes,), generator=generator)])
    labels = torch.randint(classes, (images,), generator=generator)
    return GuidedMixture(law, of == labels[:, None], _log_uniform(generator, scales))


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
