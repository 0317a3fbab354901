"""Tables calibrated on a testbed: a shipped model, a model file, or one of them guided."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from steindiff.calibration import calibrations
from steindiff.calibration.calibrate import USUAL, Options
from steindiff.calibration.keeping import FIRST_SEED
from steindiff.denoisers import Denoiser
from steindiff.errors import require
from steindiff.noise import initial_noise
from steindiff.solvers import Setting, Table
from steindiff.study.testbed import Testbed, guided_model


def calibrate_bed(
    bed: Testbed,
    nfe: Sequence[int],
    trajectories: int,
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    first_seed: int = FIRST_SEED,
    options: Options = USUAL,
    starts: Sequence[Table] = (),
    work: Path | None = None,
    progress: bool = False,
) -> list[Table]:
    """A table for each number of evaluations. Arguments and errors as `calibration.calibrations`.

    A noise level that is None is the testbed's own: EDM's, within the range that the network was made for.
    """
    require(trajectories >= 1, "need at least one trajectory", trajectories=trajectories)
    levels = Setting.of(bed.denoiser, sigma_max, sigma_min)
    seeds, given = range(first_seed, first_seed + trajectories), bed.conditioned

    def conditioned(places: Tensor) -> Denoiser:
        return bed.denoiser_for([seeds[i] for i in places.tolist()])

    noise = initial_noise(seeds, bed.event_shape, levels.sigma_max, device=bed.device)
    tables = calibrations(
        bed.denoiser, noise, nfe, sigma_max=levels.sigma_max, sigma_min=levels.sigma_min,
        conditioned=None if given is None else conditioned, options=options, starts=starts, work=work, progress=progress,
    )  # fmt: skip
    named = {"testbed": bed.name, "digest": bed.digest, "first_seed": first_seed}
    return [Table(table.solver, {**table.report, **named}) for table in tables]


def calibrate_guided(
    model: str, scales: Sequence[float], nfe: Sequence[int], trajectories: int, *, device: str = "cpu", **how: Any
) -> list[Table]:
    """Tables of a class-conditional model, by name or file, for several scales of guidance; `how` is as `calibrate_bed`.

    The largest scale comes first, and each other one starts from the tables of the one above.
    """
    beds = (guided_model(f"{model}_guided_{scale:g}", model, scale, device) for scale in sorted(scales, reverse=True))
    return [table for tables in chained(beds, nfe, trajectories, **how) for table in tables]


def chained(beds: Iterable[Testbed], nfe: Sequence[int], trajectories: int, **how: Any) -> Iterator[list[Table]]:
    """The tables of each testbed, which start from those of the one before; `how` is as `calibrate_bed`."""
    latest = list[Table]()
    for bed in beds:
        latest = calibrate_bed(bed, nfe, trajectories, starts=latest, **how)
        yield latest
