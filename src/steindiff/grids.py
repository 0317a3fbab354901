"""Noise grids: n steps need n+1 strictly decreasing noise levels σ₀ > σ₁ > … > σₙ ≥ 0, in VE coordinates, float64.

Every grid ends at `sigma_min` (`SIGMA_MIN` by default); `with_zero` appends the exact end σ = 0, as EDM's own sampler does.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from steindiff.arguments import check_dense
from steindiff.errors import InputError, require, require_numbers
from steindiff.schedules import Schedule, VPLinear
from steindiff.specs import Registry

MOST_STEPS = 10**6
_POSITIVE = "is not positive (only the last may be 0)"
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""The ends of EDM's grid (Karras et al. 2022, Table 1), the default of every grid and of the noise that a run starts from."""


def karras(n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0) -> Tensor:
    """The EDM grid: σ_i = (σ_max^(1/ρ) + i/n (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, i = 0…n, ρ > 0 (Karras et al. 2022, Eq. 5).

    Raises InputError unless n ≥ 1, 0 < sigma_min < sigma_max < ∞ and ρ > 0.
    """
    _check(n, sigma_min, sigma_max)
    require_numbers(rho=rho)
    require(rho > 0, "need rho > 0 (EDM uses 7)", rho=rho)
    return _pin(_ramp(n, sigma_max ** (1 / rho), sigma_min ** (1 / rho)) ** float(rho), sigma_min, sigma_max)


def log_snr(n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Uniform in λ = −log σ: σ_i = σ_max (σ_min/σ_max)^(i/n) (Lu et al. 2022)."""
    _check(n, sigma_min, sigma_max)
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64).log()
    return _pin(_ramp(n, *ends.tolist()).exp(), sigma_min, sigma_max)


def time_uniform(
    n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, schedule: Schedule | None = None
) -> Tensor:
    """Uniform in the schedule's time, t_i = t_max + i/n (t_min − t_max); the schedule is VPLinear by default."""
    return _in_time(n, sigma_min, sigma_max, schedule, power=1)


def time_quadratic(
    n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, schedule: Schedule | None = None
) -> Tensor:
    """Uniform in √t: denser at low noise (Song et al. 2021, DDIM); the schedule is VPLinear by default."""
    return _in_time(n, sigma_min, sigma_max, schedule, power=2)


def from_list(values: Sequence[float] | Tensor) -> Tensor:
    """An explicit grid, validated."""
    return validate(torch.as_tensor(values, dtype=torch.float64))


def with_zero(sigmas: Tensor) -> Tensor:
    """(σ₀…σₙ) ↦ (σ₀…σₙ, 0): one more step, to the noise-free end. Raises InputError when the grid ends at 0 already."""
    sigmas = validate(sigmas)
    if float(sigmas[-1]) == 0:
        raise InputError("the grid already ends at sigma = 0: use it as it is")
    return torch.cat([sigmas, sigmas.new_zeros(1)])


_REGISTRY: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "log_snr": log_snr,
    "time_uniform": lambda n, sigma_min, sigma_max: time_uniform(n, sigma_min, sigma_max),
    "time_quadratic": lambda n, sigma_min, sigma_max: time_quadratic(n, sigma_min, sigma_max),
}
"""What a spec can name; a schedule is an object, which only Python can give."""


def names() -> tuple[str, ...]:
    """The names that a grid's spec can have."""
    return tuple(_REGISTRY)


def make(spec: str, n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Tensor:
    """The grid that a spec names, such as "log_snr" or "karras(rho=5)"."""
    shapes = {name: partial(grid, n, sigma_min, sigma_max) for name, grid in _REGISTRY.items()}
    return Registry("grid", Tensor, shapes).make(spec)


def validate(sigmas: Tensor) -> Tensor:
    """Return the grid in float64 if it is 1-D, finite, strictly decreasing and positive (its last value may be 0).

    Raises:
        InputError: the grid is not; the error names the first offending value and its position.
    """
    if not isinstance(sigmas, Tensor) or sigmas.is_nested or sigmas.ndim != 1 or len(sigmas) < 2:
        plain = isinstance(sigmas, Tensor) and not sigmas.is_nested
        shape = tuple(sigmas.shape) if plain else type(sigmas).__name__
        raise InputError(f"sigmas of shape {shape}: need a 1-D tensor of n+1 ≥ 2 noise levels for n steps")
    if not sigmas.is_floating_point():
        raise InputError(f"sigmas has dtype {sigmas.dtype}: need floating point, float64 preferred (sigmas.double())")
    check_dense("sigmas", sigmas)
    check_levels(sigmas.tolist())
    return sigmas if sigmas.dtype == torch.float64 or sigmas.device.type == "mps" else sigmas.to(torch.float64)


def check_levels(levels: Sequence[float]) -> None:
    """Raise InputError, which names the first offending one, unless these are the levels of a grid, on the host."""
    if math.isfinite(levels[0]) and levels[-1] >= 0 and all(before > after for before, after in pairwise(levels)):
        return
    last = len(levels) - 1
    _refuse(levels, [not math.isfinite(level) for level in levels], "is not finite")
    _refuse(levels, [not (level > 0 or (level == 0 and i == last)) for i, level in enumerate(levels)], _POSITIVE)
    _refuse(levels, [False, *(after >= before for before, after in pairwise(levels))], "is not below the one before it")


def _refuse(levels: Sequence[float], bad: Sequence[bool], why: str) -> None:
    if any(bad):
        i = bad.index(True)
        raise InputError(f"sigmas[{i}] = {levels[i]:g} {why}: a grid runs from high noise to low, strictly decreasing")


def _check(n: object, sigma_min: float, sigma_max: float) -> None:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise InputError(f"n={n!r} steps: need a whole number, at least 1")
    require(n <= MOST_STEPS, f"no run has more than {MOST_STEPS} steps: take fewer", n=n)
    require_numbers(sigma_min=sigma_min, sigma_max=sigma_max)
    ordered = 0 < sigma_min < sigma_max < float("inf")
    require(ordered, "need 0 < sigma_min < sigma_max < inf", sigma_min=sigma_min, sigma_max=sigma_max)


def _ramp(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, int(n) + 1, dtype=torch.float64)


def _pin(sigmas: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Set both ends to exactly what was asked for: powers and exponentials have rounded them."""
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return validate(sigmas)


def _in_time(n: int, sigma_min: float, sigma_max: float, schedule: Schedule | None, power: int) -> Tensor:
    _check(n, sigma_min, sigma_max)
    schedule = schedule or VPLinear()
    t = schedule.time(torch.tensor([sigma_max, sigma_min], dtype=torch.float64)) ** (1 / power)
    return _pin(schedule.ratio(_ramp(n, *t.tolist()) ** power), sigma_min, sigma_max)
