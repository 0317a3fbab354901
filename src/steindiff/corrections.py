"""Corrections by name, for the command line and for tables."""

from __future__ import annotations

from pathlib import Path

from steindiff.bands import Cosine
from steindiff.errors import unknown_name
from steindiff.rules import CleanTarget, Energy, FixedGamma, NoiseConsistent, Rule

__all__ = ["make", "names"]

_REGISTRY: dict[str, Rule | None] = {
    "none": None,
    "literal": CleanTarget(),
    "clamped": CleanTarget(gamma_max=1.0),
    "analytical": CleanTarget(gamma_max=1.0, mode="analytical"),
    "adaptive": CleanTarget(gamma_max=1.0, mode="adaptive"),
    "noise_consistent": NoiseConsistent(gamma_min=0.0, gamma_max=2.0),
    "energy": Energy(),
    "energy_bands": Energy(bands=Cosine()),
}


def names() -> tuple[str, ...]:
    """The correction names `make` accepts."""
    return tuple(_REGISTRY)


def make(name: str) -> Rule | None:
    """The named rule, None for "none"; a name ending in .json is a table of γ (`FixedGamma.load`).

    "literal" is Algorithm 1 as printed, "clamped" the same with γ ≤ 1; "analytical" and "adaptive" are its cheaper divergence
    modes, clamped; "energy" and "energy_bands" are our own rule with one η or one per frequency band of an image, M from
    the run's first step. Raises InputError for an unknown name, with a suggestion.
    """
    if Path(name).suffix == ".json":
        return FixedGamma.load(name)
    if name not in _REGISTRY:
        raise unknown_name("correction", name, [*_REGISTRY, "<path to a .json table of gamma>"])
    return _REGISTRY[name]
