"""What a derivative of a testbed costs, in network evaluations: measured once, on a batch, and billed in every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steindiff.divergence import Choice, choose
from steindiff.grids import SIGMA_MAX
from steindiff.io.files import digest
from steindiff.noise import initial_noise
from steindiff.study.store import FORMAT, Kind, file_name, kept
from steindiff.study.testbed import Testbed

__all__ = ["price"]

REPEATS = 10
"""Timings of a derivative and of a forward, in turns; the least of each counts."""


def price(bed: Testbed, seeds: Sequence[int], folder: Path | None = None, method: str = "vjp") -> Choice:
    """The price of a derivative of the testbed: the one kept in `folder`, or a new one, which is kept there.

    Args:
        bed: the testbed.
        seeds: the seeds of a batch, on whose size a network's price depends.
        folder: the study's folder; None keeps nothing.
        method: how derivatives are taken, one of `divergence.METHODS`.

    Raises:
        InputError: a file there is not what its name says.
        SteindiffError: the network has no such derivative.
    """

    def new() -> Choice:
        x = initial_noise(seeds, bed.event_shape, SIGMA_MAX, device=bed.device)
        return choose(bed.denoiser_for(seeds), x, x.new_tensor(1.0), methods=(method,), samples=len(x), repeats=REPEATS)

    if folder is None:
        return new()
    key = digest(format=FORMAT, bed=bed.digest, batch=len(seeds), device=bed.device, method=method)
    path = folder / "prices" / f"{file_name(bed.name, key)}.safetensors"
    return kept(path, key, Kind(Choice, "it is measured again"), new)
