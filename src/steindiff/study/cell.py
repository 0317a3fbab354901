"""One cell: draw every image of the study's seeds with one solver and correction, alone or together with other processes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steindiff import corrections, grids, solvers
from steindiff.divergence import Choice, Hutchinson, choose
from steindiff.errors import InputError, NonFiniteError
from steindiff.io import processes
from steindiff.io.files import digest, write_json
from steindiff.noise import generators, initial_noise
from steindiff.sampling import SampleResult, sample
from steindiff.solvers import Solver
from steindiff.study.grid import Cell, Config
from steindiff.study.testbed import SIGMA_MAX, SIGMA_MIN, Testbed

__all__ = ["Drawn", "draw", "key_of", "price"]

_REPEATS = 10
"""Timings of a derivative and a forward, in turns; the least of each counts."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A cell's samples, (n, *event), or why there are none; the trace of the first batch; means of NFE and forwards."""

    x: Tensor | None
    trace: list[dict[str, Any]]
    stats: dict[str, float]
    seconds: float
    failure: str = ""


def key_of(cell: Cell, bed: Testbed, config: Config, judges: Sequence[str] = ()) -> str:
    """A digest of all that determines a cell's numbers; `judges` are those of what else measures its images."""
    solver, sigmas = _build(cell, config, None)
    return digest(
        bed=bed.digest,
        solver=repr(solver),
        sigmas=sigmas.tolist(),
        seeds=(config.first_seed, config.n),
        batch=config.batch,
        **({"judges": list(judges)} if judges else {}),
    )


def price(bed: Testbed, config: Config, folder: Path) -> Choice:
    """What a derivative of the testbed costs: measured once in a study, kept in its folder, billed in every cell.

    Raises:
        InputError: a file there that is not what its name says.
    """
    path = folder / "prices" / f"{bed.name}-{digest(bed=bed.digest, batch=config.batch, device=bed.device)}.json"
    if not path.exists():
        write_json(path, _measured(bed, config)._asdict())
    try:
        return Choice(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} does not say what a derivative costs ({error}): remove it, and it is measured again"
        ) from error


def _measured(bed: Testbed, config: Config) -> Choice:
    seeds = range(config.first_seed, config.first_seed + config.batch)
    x = initial_noise(seeds, bed.event_shape, SIGMA_MAX, device=bed.device)
    sigma = torch.tensor(1.0, dtype=x.dtype, device=x.device)
    return choose(bed.denoiser, x, sigma, methods=("vjp",), samples=len(x), repeats=_REPEATS)


def draw(cell: Cell, bed: Testbed, config: Config, choice: Choice) -> Drawn:
    """Run every batch; several processes take a block of each batch, and γ is that of the whole. Samples are on the CPU."""
    solver, sigmas = _build(cell, config, choice)
    start = time.perf_counter()
    results: list[SampleResult] = []
    ends: list[Tensor] = []
    seeds = range(config.first_seed, config.first_seed + config.n)
    for first in range(0, config.n, config.batch):
        result, failure = _one_batch(solver, bed, sigmas, seeds[first : first + config.batch])
        if result is None:
            return Drawn(None, [], {}, time.perf_counter() - start, failure)
        results.append(result)
        ends.append(processes.gather(result.x).cpu())
    names = ("nfe", "forward_equivalents", "jvps", "vjps")
    stats = {name: sum(getattr(r.stats, name) for r in results) / len(results) for name in names}
    return Drawn(torch.cat(ends), [asdict(r) for r in results[0].trace], stats, time.perf_counter() - start)


def _build(cell: Cell, config: Config, choice: Choice | None) -> tuple[Solver, Tensor]:
    solver, steps = solvers.for_nfe(solvers.make(cell.solver), cell.nfe)
    gather = processes.gather if processes.active() and choice else processes.alone
    corrected = corrections.apply(
        cell.correction, solver, divergence=Hutchinson(config.probes, method="vjp", choice=choice), gather=gather
    )
    return corrected, grids.make(cell.grid, steps, SIGMA_MIN, SIGMA_MAX)


def _one_batch(
    solver: Solver, bed: Testbed, sigmas: Tensor, seeds: Sequence[int]
) -> tuple[SampleResult, str] | tuple[None, str]:
    """This process's block of a batch; None where it failed on any process, with the reason."""
    block = processes.share(len(seeds))
    mine = seeds[block.start : block.stop]
    x = initial_noise(mine, bed.event_shape, SIGMA_MAX, device=bed.device)
    result, failure = None, ""
    try:
        result = sample(solver, bed.denoiser, x, sigmas, generator=generators(mine))
    except NonFiniteError as error:
        failure = str(error)
    failure = _agreed(failure)
    return (None, failure) if result is None or failure else (result, "")


def _agreed(failure: str) -> str:
    """The first process's failure that has one; every process must ask."""
    if not processes.active():
        return failure
    all_of_them: list[str] = [""] * processes.world_size()
    dist.all_gather_object(all_of_them, failure)
    return next((f for f in all_of_them if f), "")
