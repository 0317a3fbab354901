"""The one batch loop: images of given seeds by a solver on a testbed, on one process or shared out over several."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steindiff.corrections import Corrected
from steindiff.errors import NonFiniteError
from steindiff.io import processes
from steindiff.noise import generators, initial_noise
from steindiff.sampling import SampleResult, sample
from steindiff.solvers import Solver
from steindiff.study.common import Common
from steindiff.study.testbed import Testbed


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a run gave: images (n, *event) on the CPU, None where it failed; for the other entries see `store.Result`."""

    x: Tensor | None
    trace: list[dict[str, Any]]
    stats: dict[str, float]
    seconds: float
    failure: str = ""

    @property
    def samples(self) -> Tensor:
        """The images. Raises NonFiniteError where the run failed."""
        if self.x is None:
            raise NonFiniteError(self.failure)
        return self.x


def draw(
    solver: Solver,
    bed: Testbed,
    sigmas: Tensor,
    seeds: Sequence[int],
    *,
    batch: int = 128,
    together: bool = False,
    common: Common | None = None,
    tick: Callable[[int], object] = lambda images: None,
) -> Drawn:
    """Images of the seeds, batch by batch, from their own noise at the grid's first level.

    Args:
        solver: the solver, corrected or not; a correction's statistics are those of a batch.
        bed: the testbed.
        sigmas: the noise grid.
        seeds: one seed for each image.
        batch: how many images a batch has.
        together: whether all processes call this: each takes a block of every batch, each gets all images, and a failure of
            one is a failure of all.
        common: looks up the first evaluations of the run; those of a plain solver are kept in it.
        tick: is told the number of images of each finished batch.
    """
    start, results, ends = time.perf_counter(), list[SampleResult](), list[Tensor]()
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        shared = together and len(part) >= processes.world_size()  # else everyone draws the few that are left
        block = processes.share(len(part)) if shared else range(len(part))
        own, failure = part[block.start : block.stop], None
        x = initial_noise(own, bed.event_shape, float(sigmas[0]), device=bed.device)
        denoiser = bed.denoiser_for(own)
        if common is not None:
            denoiser = common.of(denoiser, own, keep=not isinstance(solver, Corrected))
        try:
            results.append(sample(solver, denoiser, x, sigmas, generator=generators(own)))
        except NonFiniteError as error:
            failure = str(error)
        failure = processes.agreed(failure) if together else failure
        if failure is not None:
            return Drawn(None, [], {}, time.perf_counter() - start, failure)
        ends.append((processes.gather(results[-1].x) if shared else results[-1].x).cpu())
        tick(len(part))
    names = ("nfe", "forward_equivalents", "jvps", "vjps")
    stats = {name: sum(getattr(r.stats, name) for r in results) / len(results) for name in names}
    return Drawn(torch.cat(ends), [r.as_json() for r in results[0].trace], stats, time.perf_counter() - start)
