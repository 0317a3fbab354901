"""Makes the shipped calibrated tables of the embedded networks; a stopped run goes on.

    python -m recipes.calibrate_models --work outputs/tables

It takes about two hours on two cores, most of it for cifar10 at 7 to 10 evaluations.
"""

from pathlib import Path
from typing import Annotated

from recipes.command import command
from steindiff import calibration
from steindiff.calibration.keeping import kept_beside
from steindiff.run import parse_seeds
from steindiff.solvers import Table
from steindiff.solvers.calibrated import SHIPPED
from steindiff.study import testbed
from steindiff.study.calibrating import calibrate_bed, calibrate_guided

TRAJECTORIES = {"digits": 128, "cifar10": 64, "digits_classes": 32}
"""The noises of each network's calibration."""
NFE = {"digits": "1-10", "cifar10": "1-10", "digits_classes": "3-6,8,10"}
"""The numbers of evaluations that each has tables for."""
HOW = calibration.Options(settings=calibration.Settings(iterations=10, patience=3, gain=2e-3, along=0.2))
"""How the shipped tables were made, before images that choose counted one by one."""
SCALES = {"digits_classes": (2.0, 3.0, 5.0, 8.0)}
"""The scales of guidance of networks with classes."""


@command
def main(
    work: Annotated[Path, "the folder of fine runs and finished tables"],
    models: Annotated[str, "the networks"] = ",".join(TRAJECTORIES),
    nfe: Annotated[str, "numbers of evaluations, such as 3,5-10; empty: those that are shipped"] = "",
    out: Annotated[Path, "the folder of the files, NAME.safetensors"] = SHIPPED,
    threads: Annotated[int, "CPU threads; they change the last digits", 1] = 2,
) -> None:
    """Calibrate every network."""
    for name in models.split(","):
        counts, how = parse_seeds(nfe or NFE[name]), {"options": HOW, "work": work / name, "progress": True}
        if name in SCALES:
            tables = calibrate_guided(name, SCALES[name], counts, TRAJECTORIES[name], **how)
        else:
            tables = calibrate_bed(testbed.make(name), counts, TRAJECTORIES[name], **how)
        said = {"command": f"python -m recipes.calibrate_models --models {name} --work WORK"}  # folders are nobody's business
        tables = [Table(table.solver, {**table.report, **said}) for table in tables]
        print(f"{len(tables)} tables in {kept_beside(out / f'{name}.safetensors', tables)}", flush=True)
