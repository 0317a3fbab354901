"""Makes the shipped calibrated tables of the embedded networks; a stopped run goes on.

    python -m recipes.calibrate_models --work outputs/tables

It takes about an hour on two cores, most of it for cifar10 at 7 to 10 evaluations. The
shipped file of cifar10 has no table of 9 evaluations yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from recipes.command import command
from steindiff.run import parse_seeds
from steindiff.solvers.calibrated import SHIPPED
from steindiff.study import testbed
from steindiff.study.calibrating import calibrate_bed, kept_beside

TRAJECTORIES = {"digits": 128, "cifar10": 64}
"""The noises of each network's calibration."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    work: Annotated[Path, "the folder of fine runs and finished tables"]
    nfe: Annotated[str, "numbers of evaluations, such as 3,5-10"] = "1-10"
    out: Annotated[Path, "the folder of the files, NAME.safetensors"] = SHIPPED
    threads: Annotated[int, "CPU threads; they change the last digits", 1] = 2


@command
def main(options: Options) -> None:
    """Calibrate every network."""
    for name, count in TRAJECTORIES.items():
        bed = testbed.make(name)
        tables = calibrate_bed(bed, parse_seeds(options.nfe), count, work=options.work / name, progress=True)
        print(f"{len(tables)} tables in {kept_beside(options.out / f'{name}.safetensors', tables)}", flush=True)
