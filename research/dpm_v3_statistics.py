"""What the statistics of DPM-Solver-v3 buy, and how many noises they need.

    python -m research.dpm_v3_statistics --bed wine_mixture
    python -m research.dpm_v3_statistics --bed digits_mixture --nfe 4 6

Each line is the method at its published settings in log-SNR, with constant statistics (noise prediction is DPM-Solver, data
prediction DPM-Solver++) or measured ones. Columns are the endpoint RMSE of new noises, with its standard error.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from recipes.command import command, print_table

from research.calibration_variants import flows
from steindiff import grids, sample
from steindiff.calibration import Trajectories
from steindiff.calibration.keeping import FIRST_SEED
from steindiff.calibration.peers import dpm_v3
from steindiff.metrics import Value, endpoint_rmse
from steindiff.solvers import DPMSolverV3, Statistics
from steindiff.study.testbed import make

LEVELS = grids.log_snr(120).tolist()


@dataclass(frozen=True)
class Options:
    """The command line."""

    bed: Annotated[str, "a testbed"] = "wine_mixture"
    nfe: Annotated[tuple[int, ...], "network evaluations of a run"] = (4, 6, 8)
    noises: Annotated[tuple[int, ...], "how many noises the statistics are of"] = (16, 64, 256, 1024)
    images: Annotated[int, "new noises that the scores are of", 2] = 128
    order: Annotated[int, "order of the predictor; 2 is published for guidance", 1] = 3
    seed: Annotated[int, "seed of the first new noise", 0] = 90_000


def cases(o: Options, law: Trajectories) -> Iterator[tuple[str, Statistics]]:
    """What is compared."""
    event = tuple(law.noise.shape[1:])
    yield "noise prediction, (0, −1, 0)", Statistics.constant(0.0, -1.0, 0.0, LEVELS, event)
    yield "data prediction, (1, 0, 0)", Statistics.constant(1.0, 0.0, 0.0, LEVELS, event)
    for count in o.noises:
        found = dpm_v3.measured(dpm_v3.more(law, count, 0), dpm_v3.Measuring(intervals=60, probes=1))
        yield f"l, s and b of {count} noises", found
        yield "the same, their means over coordinates", averaged(found)
    none = torch.zeros_like(found.slope)
    yield f"l of {count} noises, s = b = 0", replace(found, slope=none, offset=none)


def averaged(found: Statistics) -> Statistics:
    """One number for all coordinates."""
    parts = (found.linear, found.slope, found.offset)
    return Statistics(found.levels, *(part.mean(tuple(range(1, part.ndim)), keepdim=True).expand_as(part) for part in parts))


def scored(statistics: Statistics, o: Options, new: Trajectories, nfe: int) -> Value:
    """The endpoint RMSE."""
    solver, sigmas = DPMSolverV3(statistics, o.order), grids.log_snr(nfe)
    run = sample(solver, lambda x, sigma: new.denoise(x, float(sigma)), new.noise, sigmas)
    return endpoint_rmse(run.x, new.ends)


@command
def main(o: Options) -> None:
    """Measure, run and print."""
    bed = make(o.bed)
    law, new = (flows(bed, range(first, first + count)) for first, count in ((FIRST_SEED, 64), (o.seed, o.images)))
    lines = ((name, *(scored(found, o, new, nfe) for nfe in o.nfe)) for name, found in cases(o, law))
    print_table(("statistics", *(f"N = {nfe}" for nfe in o.nfe)), lines)
