"""Distances between sets of samples, each with a standard error."""

from steindiff.metrics.distances import (
    EnergyTarget,
    Shares,
    Value,
    endpoint_rmse,
    energy_difference,
    energy_distance,
    frechet_distance,
    principal_features,
)

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
