"""`steindiff calibrate`: tables made to measure for one network.

Examples:
  steindiff calibrate --model digits --nfe 5 --out outputs/digits.safetensors
  steindiff sample --model digits --nfe 5 --table outputs/digits.safetensors --seeds 0-63 --outdir outputs/calibrated
  steindiff calibrate --model digits_classes --guidance 2,3,5 --nfe 4,6,8 --out outputs/guided.safetensors
  steindiff calibrate --model my/model.safetensors --nfe 3-10 --trajectories 32 --out my/tables/model.safetensors

A table in the folder `tables` beside a model file is what solver auto takes. Several scales of guidance serve what lies between
two of them. Killed at any moment, the same command goes on. Several processes share the network's evaluations:
  torchrun --nproc_per_node=2 -m steindiff calibrate --model cifar10 --nfe 5 --out outputs/cifar10.safetensors
"""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from steindiff.cli.options import Device
from steindiff.errors import InputError
from steindiff.io.streams import say
from steindiff.solvers import Table


def calibrate_command(
    model: Annotated[str, typer.Option(help="The name of a shipped model, a .safetensors file, or a testbed of the study.")],
    out: Annotated[Path, typer.Option(help="The tables go into this .safetensors file, beside those that it holds of others.")],
    nfe: Annotated[str, typer.Option(help="Numbers of network evaluations: 5 or 3,5-10.")] = "3-10",
    guidance: Annotated[
        str | None, typer.Option(help="Scales of guidance, for a model with a null class: 3 or 1,2,3,5,8.")
    ] = None,
    trajectories: Annotated[int, typer.Option(help="The number of noises; 16 already do.", min=1, max=1_000_000)] = 64,
    sigma_max: Annotated[float | None, typer.Option(help="The highest noise level; by default 80, or the model's own.")] = None,
    sigma_min: Annotated[
        float | None, typer.Option(help="The lowest noise level, above 0; by default 0.002, or the model's own.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Fit a table of coefficients for each number of evaluations to the network's own fine runs, and say what it gains."""
    from steindiff.calibration.keeping import keeping, kept_beside
    from steindiff.io import processes
    from steindiff.run import parse_numbers
    from steindiff.study import testbed
    from steindiff.study.calibrating import calibrate_bed, calibrate_guided

    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: tables are .safetensors files; give a name that ends so")
    numbers = parse_numbers(nfe, "--nfe", 1000)
    with processes.joined(device), keeping(out) as work:
        place = processes.local_device(device)
        how: dict[str, Any] = {"sigma_max": sigma_max, "sigma_min": sigma_min, "work": work, "progress": True}
        if guidance is None:
            tables = calibrate_bed(testbed.make(model, place), numbers, trajectories, **how)
        else:
            tables = calibrate_guided(model, _scales(guidance), numbers, trajectories, device=place, **how)
        kept_beside(out, tables)
        if processes.rank() > 0:
            return
    for table in tables:
        say(_line(table))
    say(f"{len(tables)} tables in {out}")


def _scales(text: str) -> list[float]:
    """The scales of a comma-separated list, each once."""
    try:
        scales = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--guidance {text}: need scales with commas between, such as 2,3,5") from None
    if not all(0 < scale < math.inf for scale in scales):
        raise InputError(f"--guidance {text}: need finite scales above 0")
    return scales


def _line(table: Table) -> str:
    """What the gate saw, in a sentence."""
    gate = table.report["gate"]
    theirs = gate["others"][gate["best"]]
    seen = f"RMSE {gate['rmse']:.4f}, and {theirs:.4f} by the best of the others, {gate['best']} ({gate['images']} images)"
    purpose = table.solver.purpose
    scale = f"guidance {purpose.guidance:g}, " if purpose and purpose.guidance not in (None, 1.0) else ""
    return f"{scale}{table.nfe} evaluations: {seen}; kept: {gate['kept']}; {table.report['seconds']:.0f} s"
