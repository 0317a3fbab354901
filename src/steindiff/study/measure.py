"""Every metric of one set of samples, in a form whose difference to another set from the same seeds has a standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from steindiff.analytic.mixture import Mixture
from steindiff.corrections.bands import Cosine
from steindiff.errors import InputError
from steindiff.metrics import (
    EnergyTarget,
    Features,
    FrechetTarget,
    Judge,
    ManifoldTarget,
    Shares,
    SlicedTarget,
    SpectrumTarget,
    Value,
    component_weights,
    endpoint_rmse,
    load_features,
    principal_features,
)
from steindiff.study.testbed import SIGMA_MIN, References, Testbed

__all__ = ["Measures", "Ruler", "changes"]

_AXES = 64
"""Principal axes of a pixel Fréchet distance where there are more pixels."""

T = TypeVar("T", bound="Paired")


class Paired(Protocol):
    """A statistic with its standard error, and that of a difference from the same seeds."""

    @property
    def value(self) -> Value:
        """With its standard error."""
        ...

    def minus(self: T, other: T) -> Value:
        """Less another's."""
        ...


@dataclass(frozen=True, eq=False)
class Measures:
    """One set of samples, measured: statistics by metric, and the log ratio of power to the target's by band."""

    statistics: dict[str, Paired]
    spectrum: list[float]

    @property
    def values(self) -> dict[str, Value]:
        """By metric."""
        return {name: s.value for name, s in self.statistics.items()}


def changes(corrected: Measures, plain: Measures) -> dict[str, Value]:
    """Corrected less plain, from the same seeds, by metric."""
    return {name: s.minus(plain.statistics[name]) for name, s in corrected.statistics.items() if name in plain.statistics}


class Ruler:
    """Measures samples of a testbed against its references; what belongs to the target is computed once.

    energy      energy distance to the target
    frechet     Fréchet distance, of pixels or of the target's 64 leading principal axes
    features    Fréchet distance in the features of a CIFAR-10 classifier, for RGB images of its sizes
    sliced      sliced 2-Wasserstein distance, squared
    spectrum    RMS log ratio of power over frequency bands, for images
    precision, recall, coverage    by k-NN, in the features or the axes
    components  total variation of the component weights, for mixtures
    endpoint    RMSE to the exact flow's end points of the same noise (not for other sets than those of the study's seeds)
    fid, inception_score, fd_dinov2    by the judges that are given, for images
    """

    def __init__(self, bed: Testbed, references: References, judges: Sequence[Judge] = ()) -> None:
        self._bed, self._references, self._judges = bed, references, judges
        self._energy = EnergyTarget(references.target)
        d = references.target[0].numel()
        self._axes = principal_features(references.target, min(_AXES, len(references.target) // 4)) if d > _AXES else _flat
        self._frechet = FrechetTarget(self._axes(references.target))
        self._sliced = SlicedTarget(references.target, count=64)
        self._spectrum = SpectrumTarget(references.target, Cosine(_rings(bed))) if bed.is_image else None

    def measure(self, x: Tensor, paired: bool = True) -> Measures:
        """Of samples (n, *event); paired: they come from the noise of the study's seeds."""
        found: dict[str, Paired] = {
            "energy": self._energy.shares(x),
            "frechet": self._frechet.replicates(self._axes(x)),
            "sliced": self._sliced.shares(x),
        }
        spectrum = self._spectrum.spectrum(x) if self._spectrum else None
        if spectrum is not None:
            found["spectrum"] = spectrum.rms
        if self._features is not None and self._feature_target is not None:
            found["features"] = self._feature_target.replicates(self._features(x.clamp(-1, 1)))
        manifold = self._manifold.compare(self._view(x))
        found |= {"precision": manifold.precision, "recall": manifold.recall, "coverage": manifold.coverage}
        if isinstance(self._bed.law, Mixture):
            found["components"] = component_weights(x, self._bed.law, SIGMA_MIN).total_variation
        for judge in self._judges:
            found |= judge.measure(x)
        if paired:
            found["endpoint"] = _endpoint(x, self._references.endpoints)
        return Measures(found, [] if spectrum is None else spectrum.ratios.tolist())

    @cached_property
    def _features(self) -> Features | None:
        """The classifier's, where its images have this shape."""
        features = load_features("cifar10")
        try:
            features.check(self._bed.event_shape)
        except InputError:
            return None
        return features if self._bed.law is None else None

    @cached_property
    def _feature_target(self) -> FrechetTarget | None:
        return FrechetTarget(self._features(self._references.target.clamp(-1, 1))) if self._features is not None else None

    @cached_property
    def _manifold(self) -> ManifoldTarget:
        # As many as samples: coverage counts the target's points.
        return ManifoldTarget(self._view(self._references.target[: len(self._references.endpoints)]))

    def _view(self, x: Tensor) -> Tensor:
        """What neighbours are looked for in."""
        return self._axes(x) if self._features is None else self._features(x.clamp(-1, 1))


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).double()


def _rings(bed: Testbed) -> int:
    """Frequency rings of an image."""
    return min(8, bed.event_shape[-1] // 2)


def _endpoint(x: Tensor, reference: Tensor) -> Shares:
    """The RMSE with each image's share in it, s_i/(2 rmse), s_i its mean square, by the delta method."""
    rmse = endpoint_rmse(x, reference).value
    squares = (x.double() - reference.double()).flatten(1).square().mean(1)
    return Shares(rmse, squares / (2 * max(rmse, 1e-300)), torch.zeros(2, dtype=torch.float64))
