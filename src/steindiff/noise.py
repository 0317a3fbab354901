"""Random numbers that belong to an image, not to a batch: one generator per seed, drawn on the CPU.

An image's initial noise depends on its seed alone, whatever the batch, the device or the correction; the probes of a
correction come from streams of their own, so switching it on never changes the noise.
"""

import operator
from collections.abc import Iterable, Sequence, Sized
from numbers import Integral

import torch
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.grids import SIGMA_MAX

_MASK = 2**64 - 1
_DEVIATIONS = 16
"""No normal number in float64 is as many deviations from 0."""


def mix(*values: int) -> int:
    """A 63-bit seed from several integers (splitmix64 finaliser, folded): nearby inputs give unrelated streams."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image, 0 ≤ seed < 2⁶³; below 2³² the stream of `torch.manual_seed(seed)`.

    `sample(generator=generators(seeds))` seeds the probes of a correction, and the fresh noise of a stochastic solver, from
    streams of their own. The first noise is the state that `sample` is given, which `initial_noise(seeds, …)` draws.

    Raises:
        InputError: no list of seeds, or a seed that is no whole number or out of range.
    """
    require(isinstance(seeds, Iterable), "need a list of seeds, one per image, such as range(8)", seeds=seeds)
    return [_stream(seed) for seed in seeds]


def _stream(seed: int) -> torch.Generator:
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if not 0 <= value < 2**63:
        raise InputError(f"seed {seed!r}: need a whole number, 0 ≤ seed < 2^63")
    # torch's CPU generator reads the low 32 bits of a seed: mixing keeps s and s + 2^32 apart.
    return torch.Generator().manual_seed(value if value < 2**32 else mix(value))


def fresh_seed(generator: torch.Generator) -> int:
    """Draw a seed from a generator, which moves on."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def initial_noise(
    seeds: Sequence[int],
    event_shape: Sequence[int],
    sigma_max: float = SIGMA_MAX,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """x = σ_max ε, one image per seed, in VE coordinates; (len(seeds), *event_shape).

    Drawn in float64 and cast, so that every dtype sees the same noise. Raises InputError without seeds or sizes, for sizes
    below 1, for another dtype, and unless sigma_max is above 0 and the dtype can hold its noise.
    """
    require(isinstance(seeds, Sized), "need a list of seeds, one per image, such as range(8)", seeds=seeds)
    require(isinstance(event_shape, Iterable), "need the sizes of an image, such as (3, 32, 32)", event_shape=event_shape)
    event = tuple(event_shape)
    require(len(seeds) > 0, "need at least one image", seeds=seeds)
    whole = all(isinstance(n, Integral) for n in event)
    possible = event and whole and min(event) > 0 and 0 < sigma_max < float("inf")
    require(bool(possible), "need sizes ≥ 1 and 0 < sigma_max < inf", event_shape=event, sigma_max=sigma_max)
    need = "need float32 or another dtype of real floating-point numbers"
    require(isinstance(dtype, torch.dtype) and dtype.is_floating_point, need, dtype=dtype)
    most = torch.finfo(dtype).max / _DEVIATIONS
    require(sigma_max <= most, f"the largest level that {dtype} holds with its noise is {most:.3g}", sigma_max=sigma_max)
    draws = [torch.randn(event, generator=g, dtype=torch.float64) for g in generators(seeds)]
    return moved(sigma_max * torch.stack(draws), dtype, torch.device(device))


def moved(drawn: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers, which are drawn on the CPU so that they do not depend on the device, there: the host does not wait."""
    drawn = drawn.to(dtype)
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)
