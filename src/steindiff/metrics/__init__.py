"""Distances between sets of samples, each with a standard error; moments; features of images."""

from steindiff.metrics.distances import (
    EnergyTarget,
    FrechetTarget,
    Shares,
    Value,
    endpoint_rmse,
    energy_difference,
    energy_distance,
    frechet_distance,
    principal_features,
)
from steindiff.metrics.features import Features, load_features
from steindiff.metrics.moments import SampleMoments

__all__ = [
    "EnergyTarget",
    "Features",
    "FrechetTarget",
    "SampleMoments",
    "Shares",
    "Value",
    "endpoint_rmse",
    "energy_difference",
    "energy_distance",
    "frechet_distance",
    "load_features",
    "principal_features",
]
