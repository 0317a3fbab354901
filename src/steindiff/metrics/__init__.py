"""Distances between sets of samples, each with a standard error; moments, references and features of images."""

from steindiff.metrics.components import ComponentWeights, component_weights
from steindiff.metrics.distances import (
    EnergyTarget,
    endpoint_rmse,
    energy_difference,
    energy_distance,
    principal_features,
)
from steindiff.metrics.features import Features, load_features
from steindiff.metrics.fid.extractors import dinov2, inception
from steindiff.metrics.fid.inception_score import inception_score
from steindiff.metrics.fid.judge import Judge, JudgeFiles, judge
from steindiff.metrics.fid.references import Reference, read_reference, write_reference
from steindiff.metrics.frechet import FrechetTarget, frechet_distance
from steindiff.metrics.manifold import Manifold, ManifoldTarget, precision_recall
from steindiff.metrics.moments import SampleMoments
from steindiff.metrics.resampling import Halves, Replicates, jackknife, jackknife_difference
from steindiff.metrics.sliced import SlicedTarget, sliced_wasserstein
from steindiff.metrics.spectrum import Spectrum, SpectrumTarget, spectrum_error
from steindiff.metrics.values import HIGHER, TITLES, Paired, Shares, Value, weigh

__all__ = [
    "HIGHER", "TITLES", "ComponentWeights", "EnergyTarget", "Features", "FrechetTarget", "Halves", "Judge", "JudgeFiles",
    "Manifold", "ManifoldTarget", "Paired", "Reference", "Replicates", "SampleMoments", "Shares", "SlicedTarget", "Spectrum",
    "SpectrumTarget", "Value", "component_weights", "dinov2", "endpoint_rmse", "energy_difference", "energy_distance",
    "frechet_distance", "inception", "inception_score", "jackknife", "jackknife_difference", "judge", "load_features",
    "precision_recall", "principal_features", "read_reference", "sliced_wasserstein", "spectrum_error", "weigh",
    "write_reference",
]  # fmt: skip
