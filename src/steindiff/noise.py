"""Random numbers that belong to an image, not to a batch: one generator per seed, drawn on the CPU.

An image's initial noise depends on its seed alone, whatever the batch, the device or the correction; the probes of a
correction come from streams of their own, so switching it on never changes the noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steindiff.errors import InputError

__all__ = ["fresh_seed", "generators", "initial_noise", "mix"]

_MASK = 2**64 - 1


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
    """One CPU generator per image. Raises InputError for a seed outside 0 … 2⁶³−1."""
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise InputError(f"seed {seed}: need 0 ≤ seed < 2^63")
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def fresh_seed(generator: torch.Generator) -> int:
    """A seed drawn from a generator, which moves on."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def initial_noise(
    seeds: Sequence[int],
    event_shape: Sequence[int],
    sigma_max: float = 80.0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """x = σ_max ε, one image per seed, in VE coordinates; (len(seeds), *event_shape).

    Drawn in float64 and cast, so that every dtype sees the same noise. Raises InputError for an empty list of seeds.
    """
    if len(seeds) == 0:
        raise InputError("no seeds: need at least one image")
    draws = [torch.randn(*event_shape, generator=g, dtype=torch.float64) for g in generators(seeds)]
    return (sigma_max * torch.stack(draws)).to(dtype=dtype, device=device)
