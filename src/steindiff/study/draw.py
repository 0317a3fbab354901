"""The one batch loop: images of given seeds by a solver on a testbed, on one process or shared out over several."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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

_COSTS = ("nfe", "forward_equivalents", "jvps", "vjps")


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
        together: whether all processes call this: they share out the images as `_dealt` says, each gets all of them, and a
            failure of one is a failure of all.
        common: looks up the first evaluations of the run; those of a plain solver are kept in it.
        tick: is told the number of images of each finished batch.
    """
    start, results, ends, costs = time.perf_counter(), list[SampleResult](), list[Tensor](), list[Tensor]()
    for turn in _dealt(len(seeds), batch, together):
        own, failure = [seeds[i] for i in turn.own], None
        x = initial_noise(own, bed.event_shape, float(sigmas[0]), device=bed.device)
        denoiser = bed.denoiser_for(own)
        if common is not None:
            denoiser = common.of(denoiser, own, keep=not isinstance(solver, Corrected))
        try:
            results.append(sample(turn.of(solver), denoiser, x, sigmas, generator=generators(own)))
        except NonFiniteError as error:
            failure = str(error)
        failure = processes.agreed(failure) if together else failure
        if failure is not None:
            return Drawn(None, [], {}, time.perf_counter() - start, failure)
        cost = torch.tensor([[getattr(results[-1].stats, name) for name in _COSTS]], dtype=torch.float64)
        ends.append(turn.ends(results[-1].x).cpu())
        costs.append(turn.costs(cost))
        tick(len(turn.images))
    stats = dict(zip(_COSTS, torch.cat(costs).mean(0).tolist(), strict=True))
    return Drawn(torch.cat(ends), [r.as_json() for r in results[0].trace], stats, time.perf_counter() - start)


@dataclass(frozen=True)
class _Turn:
    """Images that are drawn at a time, and those of them that are this process's: places of seeds.

    Where these are fewer, the processes have a batch each or, `divided`, parts of one.
    """

    images: range
    own: range
    divided: bool = False

    def of(self, solver: Solver) -> Solver:
        """The solver, whose correction decides from the numbers of the whole batch."""
        return replace(solver, gather=processes.gather) if self.divided and isinstance(solver, Corrected) else solver

    def ends(self, x: Tensor) -> Tensor:
        """The end states of all images from those of this process, (B, *event)."""
        return processes.gather(x) if len(self.own) < len(self.images) else x

    def costs(self, own: Tensor) -> Tensor:
        """The costs of all batches from those of this process's batch, (1, k); the processes that share a batch count alike."""
        return own if self.divided else self.ends(own)


def _dealt(count: int, batch: int, together: bool) -> Iterator[_Turn]:
    """Whole batches are dealt out, one to each process, while there is one for each; a batch that is left over is divided.

    A process that has whole batches computes what it would compute by itself, to the bit. A batch that has fewer images than
    there are processes is drawn by all.
    """
    world, rank = (processes.world_size(), processes.rank()) if together else (1, 0)
    once = world * batch
    whole = count // once * once
    for first in range(0, whole, once):
        own = first + rank * batch
        yield _Turn(range(first, first + once), range(own, own + batch))
    for first in range(whole, count, batch):
        images = range(first, min(first + batch, count))
        divided = 1 < world <= len(images)
        block = processes.share(len(images)) if divided else range(len(images))
        yield _Turn(images, images[block.start : block.stop], divided)
