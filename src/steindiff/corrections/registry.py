"""Corrections by name, for the command line and for tables: rules, and variants that wrap a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from steindiff.corrections.bands import Cosine
from steindiff.corrections.base import Corrected
from steindiff.corrections.energy import Energy
from steindiff.corrections.rules import Rule
from steindiff.corrections.stein import CleanTarget, FixedGamma, NoiseConsistent
from steindiff.corrections.variants import FastKM, SelfConsistent
from steindiff.divergence import Estimator
from steindiff.errors import InputError, unknown_name
from steindiff.io.processes import Gather, alone
from steindiff.solvers import Solver
from steindiff.specs import parse

__all__ = ["apply", "make", "names"]

_RULES: dict[str, Rule | None] = {
    "none": None,
    "literal": CleanTarget(),
    "clamped": CleanTarget(gamma_max=1.0),
    "analytical": CleanTarget(gamma_max=1.0, mode="analytical"),
    "adaptive": CleanTarget(gamma_max=1.0, mode="adaptive"),
    "noise_consistent": NoiseConsistent(gamma_min=0.0, gamma_max=2.0),
    "energy": Energy(),
    "energy_bands": Energy(bands=Cosine()),
}
# What surrounds the solver, and the rule inside: self-consistency blends the Stein step, fast KM the solver's own.
_VARIANTS: dict[str, tuple[Callable[[Solver], Solver], str]] = {
    "self_consistent": (SelfConsistent, "clamped"),
    "fast_km": (FastKM, "none"),
}


def names() -> tuple[str, ...]:
    """The correction names `apply` accepts."""
    return (*_RULES, *_VARIANTS)


def make(name: str) -> Rule | None:
    """The named rule, None for "none"; a name ending in .json is a table of γ (`FixedGamma.load`).

    "literal" is Algorithm 1 as printed, "clamped" the same with γ ≤ 1; "analytical" and "adaptive" are its cheaper divergence
    modes, clamped; "energy" and "energy_bands" are our own rule with one η or one per frequency band of an image, M from
    the run's first step. Raises InputError for an unknown name, with a suggestion, and for a variant, which is no rule.
    """
    if Path(name).suffix == ".json":
        return FixedGamma.load(name)
    call = parse(name)
    if call.name in _VARIANTS:
        raise InputError(f"correction {name!r} wraps a solver and is no rule: use corrections.apply")
    if call.name not in _RULES:
        raise unknown_name("correction", call.name, [*names(), "<path to a .json table of gamma>"])
    rule = _RULES[call.name]
    return replace(rule, **call.options) if isinstance(rule, CleanTarget) else rule


def apply(
    name: str,
    solver: Solver,
    *,
    divergence: Estimator | None = None,
    frame: Literal["model", "ve"] = "model",
    gather: Gather = alone,
) -> Solver:
    """The solver under the named correction; itself under "none". Raises InputError as `make`."""
    wrap, rule_name = _VARIANTS.get(name, (None, name))
    rule = make(rule_name)
    corrected = solver if rule is None else Corrected(solver, rule, divergence, frame, gather=gather)
    return corrected if wrap is None else wrap(corrected)
