"""What a derivative of a testbed costs, in network evaluations: measured once, on a batch, and billed in every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steindiff.divergence import Choice, choose
from steindiff.grids import SIGMA_MAX
from steindiff.noise import initial_noise
from steindiff.study.store import kept
from steindiff.study.testbed import Testbed

REPEATS = 10
"""Timings of a derivative and of a forward, in turns; the least of each counts."""


def price(bed: Testbed, seeds: Sequence[int], folder: Path | None = None, method: str = "vjp") -> Choice:
    """The price of a derivative of the testbed by this method (`divergence.METHODS`), measured once in a study's folder.

    The seeds are those of a batch: a network's price depends on its size.

    Raises:
        InputError: a file there is not what its name says.
        SteindiffError: the network has no such derivative.
    """

    def new() -> Choice:
        x = initial_noise(seeds, bed.event_shape, SIGMA_MAX, device=bed.device)
        return choose(bed.denoiser_for(seeds), x, x.new_tensor(1.0), methods=(method,), samples=len(x), repeats=REPEATS)

    parts = {"bed": bed.digest, "batch": len(seeds), "device": bed.device, "method": method}
    return kept(folder and folder / "prices", bed.name, parts, Choice, "it is measured again", new)
