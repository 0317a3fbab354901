"""Evaluations that runs of a study have in common: from the same noise, solvers begin alike.

The first evaluation of every plain solver is that of the noise, and the second one follows a first-order step. That step is one
arithmetic for all multistep methods that extrapolate data, and another for those that extrapolate noise, which rounds alike
where the step is short. An evaluation is found by its noise level and by every bit of its state, so that a run gets what the
network would say again. What a run costs is counted as if it had asked the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.divergence.products import differentiated

BEGINNING = 2
"""The evaluations of a run that others may share."""
LIMIT = 2**28
"""Bytes that a study keeps."""
_Place = tuple[int, tuple[int, ...], float]


@dataclass(eq=False)
class Common:
    """The first evaluations of runs on one testbed, on the CPU: elsewhere reading a noise level would wait for the device.

    Args:
        limit: how many bytes are kept; beyond it nothing more is.
    """

    limit: int = LIMIT
    bytes: int = 0
    _kept: dict[_Place, list[tuple[Tensor, Tensor]]] = field(default_factory=dict, repr=False)

    def of(self, denoiser: Denoiser, seeds: Sequence[int], *, keep: bool) -> Denoiser:
        """The denoiser of one run of the images of these seeds; `keep`: its evaluations are kept for others."""
        return _Beginning(denoiser, self, tuple(seeds), keep)

    def find(self, place: _Place, x: Tensor) -> Tensor | None:
        """D of this very state; None where it is not kept."""
        return next((d for y, d in self._kept.get(place, ()) if torch.equal(x, y)), None)

    def keep(self, place: _Place, x: Tensor, d: Tensor) -> None:
        """Keep an evaluation, if there is room."""
        if self.bytes + x.nbytes + d.nbytes <= self.limit:
            self.bytes += x.nbytes + d.nbytes
            self._kept.setdefault(place, []).append((x.clone(), d.clone()))


@dataclass(eq=False)
class _Beginning:
    """A denoiser whose first evaluations are looked up."""

    denoiser: Denoiser
    common: Common
    seeds: tuple[int, ...]
    keeps: bool
    calls: int = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > BEGINNING or not x.is_cpu or type(x) is not Tensor or sigma.ndim or differentiated(x):
            return self.denoiser(x, sigma)
        place = self.calls, self.seeds, float(sigma)
        found = self.common.find(place, x)
        if found is None:
            found = self.denoiser(x, sigma)
            if self.keeps:
                self.common.keep(place, x, found)
        return found
