"""The tables of β that diffusers' schedulers name, in float64: each with the formula of its `beta_schedule`."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from steindiff.errors import unknown_name
from steindiff.schedules import DiscreteBetas

LEAST_ALPHA_BAR = 2.0**-24
"""ᾱ of the last index where the signal is to vanish, hence σ/α = 4096: half precision has no smaller number, and diffusers' own
solvers take it too."""
_MOST_BETA = 0.999


def discrete(name: str, n: int, start: float, end: float, *, zero_snr: bool = False) -> DiscreteBetas:
    """The schedule of a `beta_schedule`; with its last signal-to-noise ratio set to zero where asked for.

    Raises:
        InputError: an unknown name, or β outside (0, 1).
    """
    if name not in _TABLES:
        raise unknown_name("beta_schedule", name, _TABLES)
    return of(_TABLES[name](n, start, end), zero_snr=zero_snr)


def of(betas: Sequence[float] | Tensor, *, zero_snr: bool = False) -> DiscreteBetas:
    """The schedule of β that were trained, or of a formula. Raises InputError where they lie outside (0, 1)."""
    plain = DiscreteBetas(torch.as_tensor(betas, dtype=torch.float64))
    return DiscreteBetas(_to_zero(plain.betas)) if zero_snr else plain


def _to_zero(betas: Tensor) -> Tensor:
    """Β with √ᾱ shifted and scaled so that the first stays and the last vanishes (Lin et al. 2024, Algorithm 1).

    The last ᾱ is LEAST_ALPHA_BAR, or half of the one before it where that is smaller still.
    """
    root = (1 - betas).cumprod(0).sqrt()
    bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    bar[-1] = min(LEAST_ALPHA_BAR, float(bar[-2]) / 2)
    return torch.cat([1 - bar[:1], 1 - bar[1:] / bar[:-1]])


def _linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


def _scaled_linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2


def _sigmoid(n: int, start: float, end: float) -> Tensor:
    return torch.sigmoid(torch.linspace(-6, 6, n, dtype=torch.float64)) * (end - start) + start


def _of_alpha_bar(alpha_bar: Callable[[float], float]) -> Callable[[int, float, float], Tensor]:
    """β_i = min(1 − ᾱ((i+1)/n)/ᾱ(i/n), 0.999), whatever start and end are (Nichol & Dhariwal 2021)."""

    def betas(n: int, start: float, end: float) -> Tensor:
        bars = [alpha_bar(i / n) for i in range(n + 1)]
        return torch.tensor([min(1 - bars[i + 1] / bars[i], _MOST_BETA) for i in range(n)], dtype=torch.float64)

    return betas


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _exponential(t: float) -> float:
    return math.exp(-12 * t)


def _laplace(t: float) -> float:
    lam = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(lam) / (1 + math.exp(lam)))


_TABLES: Mapping[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _of_alpha_bar(_cosine),
    "exp": _of_alpha_bar(_exponential),
    "laplace": _of_alpha_bar(_laplace),
    "sigmoid": _sigmoid,
}
