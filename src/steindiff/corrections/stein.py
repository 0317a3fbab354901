"""The paper's correction and its relatives: one γ a step.

The corrected state is (1−γ) x + γ T(x), with residual u = x − T(x) in the frame of the blend, x = α x* + σ ε.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from steindiff.corrections.base import Run
from steindiff.corrections.blend import Blend, Decision, Moments, Need, PresetBlend, bounded
from steindiff.errors import InputError, require, require_numbers
from steindiff.io.files import read_json

Mode = Literal["full", "analytical", "adaptive", "tweedie"]
History = Literal["total", "frozen"]


def stein_ratio(m: Moments) -> Tensor:
    """γ* = [(1 − 1/α) E⟨u,x⟩ + (σ²/α) E[∇·u]] / E‖u‖², the minimiser of E‖(1−γ)x + γT − x*‖² (SteinDiff Eq. 11)."""
    return ((1 - 1 / m.alpha) * m.ux + m.sigma**2 / m.alpha * m.div) / m.uu


def _full(history: History) -> Need:
    return Need.FULL if history == "total" else Need.FROZEN


def _check_history(history: str, mode: str) -> None:
    require(history in get_args(History), "choose total or frozen", history=history)
    fits = history == "total" or mode in ("full", "adaptive")
    require(fits, "only full and adaptive take a derivative that can hold a history constant", history=history, mode=mode)


@dataclass(frozen=True)
class CleanTarget(Blend):
    """γ = max(γ*, γ_min), the paper's rule (Eq. 11, Algorithm 1); as printed, γ has no upper bound.

    **Without an upper bound it diverges on exact models.** With an exact denoiser and a first-order VE step γ* = 1/(1−r) > 1:
    the step goes to D(x), noise level zero, while the next one assumes σ'. Write `CleanTarget.printed()` for the rule as
    printed (the defaults are the same), and `CleanTarget.clamped()` for γ ≤ 1, where it is a blend.

    Args:
        gamma_min: the lower bound; the paper has 1e-6.
        gamma_max: the upper bound; None, as printed, is no bound.
        mode: where E[∇·u] comes from. "full", "analytical" and "adaptive" are the paper's (E.1): an estimate at every step;
            the solver's linear part alone, without a derivative; analytical above `threshold` and full below. "tweedie" is
            ours: E⟨u, x − αD⟩/σ² = E[∇·u], so that γ* = E⟨u, x − D⟩/E‖u‖² without a derivative or a probe.
        threshold: the VE noise level of "adaptive"; the paper gives no value, 1.0 is ours.
        history: what "full" means where a step depends on x through a history too (multistep methods; UniPC's stored
            evaluation). "total" counts that dependence, so that γ* is Eq. 9's: it takes Tweedie's formula at these steps, and
            the estimator at all others. "frozen" takes the estimator everywhere, and holds the history constant in the
            derivative: γ is then off at a multistep step, and a bounded γ costs the solver its convergence. The paper says
            nothing of a history; both are our readings. "analytical" holds every network output constant, a history's too.
    """

    gamma_min: float = 1e-6
    gamma_max: float | None = None
    mode: Mode = "full"
    threshold: float = 1.0
    history: History = "total"

    def __post_init__(self) -> None:
        low, high = self.gamma_min, self.gamma_min if self.gamma_max is None else self.gamma_max
        ordered = 0 < low <= high < float("inf")
        require(ordered, "need 0 < gamma_min ≤ gamma_max < inf (None: no bound)", gamma_min=low, gamma_max=self.gamma_max)
        require(self.mode in get_args(Mode), "choose full, analytical, adaptive or tweedie", mode=self.mode)
        require(self.threshold > 0, "need a noise level > 0", threshold=self.threshold)
        _check_history(self.history, self.mode)

    @classmethod
    def printed(cls) -> "CleanTarget":
        """Algorithm 1 as printed: no upper bound; it diverges on exact models."""
        return cls(gamma_max=None)

    @classmethod
    def clamped(cls) -> "CleanTarget":
        """Algorithm 1 with γ ≤ 1."""
        return cls(gamma_max=1.0)

    def need(self, sigma: float) -> Need:
        """Tweedie's formula, the linear part, or the full divergence, by mode."""
        if self.mode == "tweedie":
            return Need.TWEEDIE
        linear = self.mode == "analytical" or (self.mode == "adaptive" and sigma > self.threshold)
        return Need.LINEAR if linear else _full(self.history)

    def decide(self, m: Moments, index: int) -> Decision:
        """Eq. 11, then the bounds."""
        return bounded(stein_ratio(m), self.gamma_min, self.gamma_max, m.uu)


@dataclass(frozen=True)
class NoiseConsistent(Blend):
    """γ = [(1 − α'/α) E⟨u,x⟩ + (α'/α − σ'/σ) σ² E[∇·u]] / E‖u‖²: the target is α' x* + σ' ε, noise included.

    In expectation it is exactly 1 for DDIM with an exact denoiser, in every schedule; so it pulls high-order solvers back to
    first order. It is a check and a fixed point rather than a sampler (derived here; not in the paper).

    Args:
        gamma_min: the lower bound; None is none.
        gamma_max: the upper bound; None is none.
        mode: where E[∇·u] comes from: "full" or "tweedie", as for `CleanTarget`. With the latter γ is 1 for every DDIM step,
            by any denoiser.
        history: "total" or "frozen", as for `CleanTarget`.
    """

    gamma_min: float | None = None
    gamma_max: float | None = None
    mode: Literal["full", "tweedie"] = "full"
    history: History = "total"

    def __post_init__(self) -> None:
        bounds = [b for b in (self.gamma_min, self.gamma_max) if b is not None]
        ordered = all(map(math.isfinite, bounds)) and bounds == sorted(bounds)
        need = "need finite bounds, gamma_min ≤ gamma_max"
        require(ordered, need, gamma_min=self.gamma_min, gamma_max=self.gamma_max)
        require(self.mode in ("full", "tweedie"), "choose full or tweedie", mode=self.mode)
        _check_history(self.history, self.mode)

    def need(self, sigma: float) -> Need:
        """The divergence at every step, by mode."""
        return _full(self.history) if self.mode == "full" else Need.TWEEDIE

    def decide(self, m: Moments, index: int) -> Decision:
        """The regression on the noise-consistent state."""
        a, s = m.alpha_next / m.alpha, m.sigma_next / m.sigma
        raw = ((1 - a) * m.ux + (a - s) * m.sigma**2 * m.div) / m.uu
        return bounded(raw, self.gamma_min, self.gamma_max, m.uu)


@dataclass(frozen=True)
class FixedGamma(PresetBlend):
    """γ_i from a table, one for each step 0…n−1: no derivative is taken, and an image depends on its seed alone."""

    table: tuple[float, ...]

    def __post_init__(self) -> None:
        require(isinstance(self.table, Iterable), "need a list of numbers, one for each step", table=self.table)
        for g in self.table:
            require_numbers(gamma=g)
        object.__setattr__(self, "table", tuple(float(g) for g in self.table))
        finite = bool(self.table) and all(map(math.isfinite, self.table))
        require(finite, "need at least one value, all finite", table=self.table)

    @classmethod
    def from_gammas(cls, gammas: Sequence[float]) -> "FixedGamma":
        """Freeze the γ of an earlier run: `FixedGamma.from_gammas([r.gamma for r in result.trace])`."""
        return cls(tuple(gammas))

    @classmethod
    def load(cls, path: str | Path) -> "FixedGamma":
        """Read a JSON list of numbers."""
        return cls(read_numbers(path, "a gamma table"))

    def init(self, run: Run) -> None:
        """Refuse a run of another length."""
        if len(self.table) != run.grid.steps:
            raise InputError(
                f"gamma table of {len(self.table)} values for a run of {run.grid.steps} steps: need one value per step"
            )

    def gamma(self, m: Moments, index: int) -> Tensor:
        """The table's value."""
        return torch.full_like(m.uu, self.table[index])


def read_numbers(path: str | Path, what: str) -> tuple[float, ...]:
    """A JSON list of finite numbers. Raises InputError where the file holds anything else; `what` names what it should be."""
    try:
        values = read_json(path)
        listed = isinstance(values, list) and all(type(g) in (int, float) and math.isfinite(g) for g in values)
        if not listed or not values:
            raise InputError("it needs at least one value, all finite")
        return tuple(map(float, values))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is not {what} (a JSON list of numbers): {error}") from error
