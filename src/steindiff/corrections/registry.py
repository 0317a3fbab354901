"""Every correction by name: `make("clamped")`, `make("energy(bands=8, moment=m.json)")`."""

from functools import partial
from pathlib import Path

from steindiff.corrections.bands import Cosine
from steindiff.corrections.base import Chain, Correction
from steindiff.corrections.energy import Energy
from steindiff.corrections.peers import DCW, EpsilonScaling
from steindiff.corrections.stein import CleanTarget, FixedGamma, NoiseConsistent
from steindiff.corrections.variants import FastKM, SelfConsistent
from steindiff.specs import Registry

NONE = "none"


def _self_consistent(eta: float = 0.5, scale: float = 1.0, proposal: Correction | str = "clamped") -> Correction:
    """The paper's Algorithm 2: the look-ahead is blended with the proposal, which is itself corrected."""
    first, second = make(proposal), SelfConsistent(eta, scale)
    return second if first is None else Chain(first, second)


_REGISTRY: Registry[Correction] = Registry(
    "correction",
    Correction,  # type: ignore[type-abstract]
    {
        "literal": CleanTarget,
        "clamped": partial(CleanTarget, gamma_max=1.0),
        "analytical": partial(CleanTarget, gamma_max=1.0, mode="analytical"),
        "adaptive": partial(CleanTarget, gamma_max=1.0, mode="adaptive"),
        "tweedie": partial(CleanTarget, gamma_max=1.0, mode="tweedie"),
        "noise_consistent": partial(NoiseConsistent, gamma_min=0.0, gamma_max=2.0),
        "energy": Energy,
        "energy_bands": partial(Energy, bands=Cosine()),
        "self_consistent": _self_consistent,
        "fast_km": FastKM,
        "epsilon_scaling": EpsilonScaling,
        "dcw": DCW,
        "fixed": FixedGamma.load,
        "chain": lambda *parts: Chain(*map(_REGISTRY.make, parts)),
    },
)


def names() -> tuple[str, ...]:
    """The names that a correction's spec can have; "none" is the plain solver."""
    return (NONE, *_REGISTRY.names())


def make(spec: Correction | str) -> Correction | None:
    """The correction that a spec names, None for "none"; the path of a .json file is a table of γ (`FixedGamma.load`).

    "literal" is Algorithm 1 as printed and "clamped" the same with γ ≤ 1; "analytical", "adaptive" and "tweedie" are its
    cheaper divergence modes, clamped. "self_consistent" and "fast_km" are its variants. "energy" and "energy_bands" are our
    own, with one η or one per frequency band of an image. "fixed(table.json)" replays a table of γ; "chain(a, b)" applies b to
    what a has made.
    """
    if spec == NONE:
        return None
    if isinstance(spec, str) and Path(spec).suffix == ".json":
        return FixedGamma.load(spec)
    return _REGISTRY.make(spec)
