"""Every correction by name: `make("clamped")`, `make("energy(bands=8, moment=m.json)")`."""

from functools import partial
from pathlib import Path

from steindiff.corrections.bands import Cosine
from steindiff.corrections.base import Chain, Correction
from steindiff.corrections.energy import Energy
from steindiff.corrections.peers import DCW, EpsilonScaling
from steindiff.corrections.sparse import Sparse, Steps
from steindiff.corrections.stein import CleanTarget, FixedGamma, NoiseConsistent
from steindiff.corrections.variants import BotNguyen, LookAhead, SelfConsistent
from steindiff.specs import Registry

NONE = "none"


def _self_consistent(
    eta: float = 1.0,
    scale: float = 1.0,
    look_ahead: LookAhead = "state",
    proposal: Correction | str = "clamped(mode=tweedie)",
) -> Correction:
    """The paper's Algorithm 2: the look-ahead is blended with the proposal, which is itself corrected.

    The proposal's γ must not answer to noise: self-consistency adds some, and a divergence then shortens the next step.
    """
    first, second = make(proposal), SelfConsistent(eta, scale, look_ahead)
    return second if first is None else Chain(first, second)


def _sparse(
    rule: Correction | str, above: float | None = None, below: float | None = None, steps: Steps | None = None
) -> Correction:
    """A correction at some steps only."""
    return Sparse(_REGISTRY.make(rule), above, below, steps)


_REGISTRY: Registry[Correction] = Registry(
    "correction",
    Correction,  # type: ignore[type-abstract]
    {
        "literal": CleanTarget,
        "clamped": partial(CleanTarget, gamma_max=1.0),
        "analytical": partial(CleanTarget, mode="analytical"),
        "adaptive": partial(CleanTarget, mode="adaptive"),
        "tweedie": partial(CleanTarget, mode="tweedie"),
        "fast_km": partial(CleanTarget, mode="analytical"),
        "sparse": _sparse,
        "noise_consistent": partial(NoiseConsistent, gamma_min=0.0, gamma_max=2.0),
        "energy": Energy,
        "energy_bands": partial(Energy, bands=Cosine()),
        "self_consistent": _self_consistent,
        "bot_nguyen": BotNguyen,
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

    "literal" is Algorithm 1 as printed; "analytical", "adaptive" and "tweedie" are its cheaper divergence modes, which have no
    upper bound either. "clamped" is Algorithm 1 with γ ≤ 1, "clamped(mode=analytical)" one of its modes so. "fast_km" is the
    analytical mode by the name of the paper's tables (our reading). "sparse(clamped, above=1.0)" corrects some steps
    only, "self_consistent" is Algorithm 2, and "bot_nguyen" an accelerated iteration that is not the paper's. "energy" and
    "energy_bands" are our own, with one η or one per frequency band of an image. "fixed(table.json)" replays a table of γ;
    "chain(a, b)" applies b to what a has made.
    """
    if spec == NONE:
        return None
    if isinstance(spec, str) and Path(spec).suffix == ".json":
        return FixedGamma.load(spec)
    return _REGISTRY.make(spec)
